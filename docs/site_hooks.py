"""For the site: what lies outside docs/ is not on it, so links to it become names of files."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace `[text](../path)` that leads out of docs/, and links to files beside the pages that are no
    pages, by the path in the repository."""
    out = re.escape("../" * (page.file.src_uri.count("/") + 1))
    markdown = re.sub(rf"\[[^\]]+\]\({out}([^)#\s]+)[^)]*\)", r"`\1`", markdown)
    return re.sub(r"(?<!!)\[[^\]]+\]\(((?:deploy|man)/[^)#\s]+)[^)]*\)", r"`docs/\1`", markdown)
