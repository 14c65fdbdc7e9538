"""The consumer's side: `fsinbox consume --handler orders:bill`."""

import json
from pathlib import Path
from urllib.parse import quote

BILLS = Path("bills")


def bill(key: str, order: dict) -> None:
    """Write the bill of an order; one file an order, so a second delivery writes the same bill again."""
    BILLS.mkdir(exist_ok=True)
    name = quote(key, safe="")  # the key came over the network: never use it as a path as it stands
    draft = BILLS / f".{name}"
    draft.write_text(json.dumps({"order": key, "total": sum(order["items"].values())}))
    draft.replace(BILLS / name)
