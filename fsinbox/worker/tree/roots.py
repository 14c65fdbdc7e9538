"""The folders that are watched, and which key a file of them has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...store.errors import InvalidKey
from ...store.mounts import is_network
from ...store.names import MAX_ENCODED, encode_key

_DIGEST = 32
"""Hexadecimal digits of SHA-256 at the end of a shortened key."""


@dataclass(frozen=True)
class Root:
    """One of the folders that are watched."""

    path: str
    """Absolute; a symlink here is followed at each scan, and nowhere below."""
    prefix: str = ""
    """What the keys of its files begin with: "" or a name and "/"."""

    @property
    def local(self) -> bool:
        """Whether events tell of every change, and times are of this host's clock."""
        return not is_network(self.path)

    def path_of(self, name: str) -> str:
        """Return the absolute path of a file, given relative to the folder."""
        return f"{self.path.rstrip('/')}/{name}"

    def key_of(self, name: str) -> str:
        """Return the key of a file, given relative to the folder. Raises InvalidKey if it is too long."""
        key = self.prefix + name
        encode_key(key)
        return key

    def short_key_of(self, name: str) -> str:
        """Return a key for a file whose own is too long: its beginning, "~" and a digest of all of it."""
        from hashlib import sha256

        key = self.prefix + name
        digest = "~" + sha256(os.fsencode(key)).hexdigest()[:_DIGEST]
        beginning = key[:MAX_ENCODED]
        while True:
            try:
                encode_key(beginning + digest)
                return beginning + digest
            except InvalidKey:
                beginning = beginning[:-1]


def parse_roots(words: list[str]) -> list[Root]:
    """Return the folders that the words DIR or NAME=DIR name. Raises ValueError.

    One DIR alone has no prefix. Of several, each has its last part, or NAME, as the prefix of its keys.
    """
    roots = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or os.path.isdir(word):
            name, path = "", word
        path = os.path.abspath(path)
        if equals and not name and path != os.path.abspath(word):
            raise ValueError(f"{word!r} has no name before the '=': write NAME=DIR, or DIR alone")
        if len(words) > 1:
            name = name or os.path.basename(path)
        roots.append(Root(path, f"{name}/" if name else ""))
    _check_apart(roots)
    return roots


def _check_apart(roots: list[Root]) -> None:
    """Raise ValueError if two folders would have keys in common, or files."""
    for index, root in enumerate(roots):
        for other in roots[:index]:
            if root.prefix == other.prefix:
                raise ValueError(
                    f"the keys of {other.path} and of {root.path} would both begin with {root.prefix!r}: "
                    f"give one another name, as NAME={root.path}"
                )
            for one, two in ((root, other), (other, root)):
                if lies_in(one.path, two.path):
                    raise ValueError(f"{one.path} lies in {two.path}: name the outer folder alone")


def lies_in(path: str, folder: str) -> bool:
    """Tell whether a path is a folder's, or is below it, symlinks resolved."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")
