"""For the site's reference of Python: our docstrings name parameters in a column, which Markdown would run
together into one paragraph. Here each becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIRST = re.compile(r"([a-z_]+(?:, [a-z_]+)*) +(?=\S)")


class Parameters(griffe.Extension):
    """Makes lists of the columns in every docstring."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        if isinstance(obj, griffe.Object) and obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(as_list, paragraphs))


def as_list(paragraph: str) -> str:
    """Return a paragraph as a list, if all its lines keep to a column; else as it is."""
    lines = paragraph.split("\n")
    first = _FIRST.match(lines[0])
    if not first or "  " not in lines[0][: first.end()]:
        return paragraph
    column = first.end()
    items = []
    for line in lines:
        name, text = line[:column].strip(), line[column:]
        if len(line) <= column or line[column - 1] != " ":
            return paragraph
        if name:
            items.append(f"- `{name}`: {text}")
        else:
            items.append(f"  {text}")
    return "\n".join(items)
