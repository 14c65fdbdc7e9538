"""Runs programs under strace, whatever they are written in, and makes a Recording of what they did.

Source of the format: strace(1). Paths of descriptors are printed (-y), so no table of descriptors is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.driver import unspell
from tests.oracle import Event

from .recording import Recording

CALLS = (
    "open openat creat write pwrite64 writev fsync fdatasync syncfs sync rename renameat renameat2 unlink "
    "unlinkat link linkat "
    "symlink symlinkat mkdir mkdirat rmdir truncate ftruncate lseek copy_file_range sendfile splice fallocate"
).split()


class Call(NamedTuple):
    """A system call that succeeded: who made it, its name, arguments as strace prints them, result, and, if
    that is a descriptor, its path. Of a flush that takes its time, its beginning is a call of its own, named
    "begin"."""

    process: str
    name: str
    arguments: list[str]
    result: int
    path: str = ""


def strace(command: list[str], trace: Path, environment: dict[str, str]) -> None:
    """Run a command under strace. It must end with 0."""
    words = ["strace", "-f", "-y", "-qq", "-s", "1000000", "--seccomp-bpf", "-e", "signal=none"]
    words += ["-e", f"trace={','.join(CALLS)}", "-o", str(trace), *command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


Find = Callable[[str], "tuple[Recording, str] | None"]
"""A path -> the recording it belongs to, and the path in it; None for what is not recorded."""


def read(trace: Path, find: Find, announced: Callable[[Recording, Event], object]) -> None:
    """Tell Recordings what a trace says. `announced` is called with what is written to a file named LOG."""
    recorder = _Recorder(find, announced)
    for call in _calls(trace.read_text(errors="surrogateescape").splitlines()):
        recorder.tell(call)


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    """Go through the calls that succeeded, in the order in which they ended."""
    unfinished: dict[str, str] = {}
    for line in lines:
        process, _, text = line.partition(" ")
        text = text.lstrip()
        if text.endswith("<unfinished ...>"):
            unfinished[process] = text = text.removesuffix("<unfinished ...>").rstrip()
            flush = re.match(r"(?:fsync|fdatasync|syncfs)\((.*)", text)
            if flush:
                yield Call(process, "begin", [flush[1]], 0)
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", text)
        if resumed:
            text = unfinished.pop(process) + resumed[1]
        match = re.fullmatch(r"(\w+)\((.*)\)\s+= (\d+)(<.*>)?", text)
        if match:
            yield Call(process, match[1], _split(match[2]), int(match[3]), _path(match[4] or ""))


def _split(text: str) -> list[str]:
    """Split arguments at the commas between them."""
    return [
        part.strip()
        for part in re.findall(r'((?:"(?:[^"\\]|\\.)*"|<[^>]*>|\[[^\]]*\]|[^,"<\[])+)(?:,|$)', text)
    ]


def _text(argument: str) -> str:
    """Return what a quoted argument stands for."""
    return _bytes(argument).decode("utf-8", "surrogateescape")


def _bytes(argument: str) -> bytes:
    assert argument.startswith('"') and argument.endswith('"'), f"cut off: {argument[-40:]}"
    return argument[1:-1].encode("latin-1").decode("unicode_escape").encode("latin-1")


class _Recorder:
    """Tells the recordings, call by call."""

    def __init__(self, find: Find, announced: Callable[[Recording, Event], object]) -> None:
        self._find = find
        self._announced = announced
        self._offsets: dict[tuple[int, int], int] = {}  # (recording, inode) -> where the next write goes
        self._begun: dict[
            str, int
        ] = {}  # process -> how many items there were when the flush began that it waits for

    def tell(self, call: Call) -> None:
        name, arguments = call.name, call.arguments
        if name in ("open", "creat"):
            arguments = ["AT_FDCWD", *arguments]
            name = "openat"
        if name in ("rename", "link"):
            arguments = ["AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]]
        elif name in ("unlink", "mkdir"):
            arguments = ["AT_FDCWD", *arguments]
        elif name == "symlink":
            arguments = [arguments[0], "AT_FDCWD", arguments[1]]
        method = getattr(self, "_" + name.replace("renameat2", "renameat"), None) or getattr(
            self, f"_{name}at", None
        )
        if method is None:
            raise AssertionError(f"{name} is not recorded yet: add it")
        method(arguments, call)

    def _at(self, folder: str, name: str) -> tuple[Recording, str] | None:
        path = _text(name)
        if not os.path.isabs(path):
            path = os.path.join(_path(folder), path)
        return self._find(os.path.normpath(path))

    def _openat(self, arguments: list[str], call: Call) -> None:
        found = (
            self._find(call.path)
            if "/proc/self/fd/" in arguments[1]
            else self._at(arguments[0], arguments[1])
        )
        if found is None:
            return
        recording, path = found
        flags = arguments[2]
        inode = recording.find(path)
        if inode is None and "O_CREAT" in flags:
            recording.create(path)
            inode = recording.find(path)
        elif "O_TRUNC" in flags:
            recording.truncate(path)
        if inode in recording.content and ("O_WRONLY" in flags or "O_RDWR" in flags):
            self._offsets[id(recording), inode] = len(recording.content[inode]) if "O_APPEND" in flags else 0

    def _write(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        if found is None:
            return
        recording, path = found
        data = _bytes(arguments[1])[: call.result]
        if path == "LOG":
            self._announced(recording, unspell(data.decode()))
            return
        self._append(recording, path, data)

    def _append(self, recording: Recording, path: str, data: bytes) -> None:
        inode = recording.find(path)
        if inode is not None:
            offset = self._offsets.get((id(recording), inode), 0)
            recording.write(path, offset, data)
            self._offsets[id(recording), inode] = offset + len(data)

    def _lseek(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        inode = found and found[0].find(found[1])
        if found and inode:
            self._offsets[id(found[0]), inode] = call.result

    def _pwrite64(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        if found:
            found[0].write(found[1], int(arguments[3]), _bytes(arguments[1])[: call.result])

    def _copy_file_range(self, arguments: list[str], call: Call) -> None:
        source, target = self._find(_path(arguments[0])), self._find(_path(arguments[2]))
        if target is None or not call.result:
            return
        assert source, "a copy from a file that is not recorded"
        whole = source[0].content[source[0].find(source[1])]  # type: ignore[index]
        start = int(arguments[1].strip("[]")) if arguments[1] != "NULL" else 0
        if arguments[3] == "NULL":
            self._append(target[0], target[1], whole[start : start + call.result])
        else:
            target[0].write(target[1], int(arguments[3].strip("[]")), whole[start : start + call.result])

    def _begin(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        if found:
            self._begun[call.process] = len(found[0].items)

    def _fsync(self, arguments: list[str], call: Call) -> None:
        """What a flush covers is what had been done when it began, not what others did until it ended."""
        found = self._find(_path(arguments[0]))
        if found:
            found[0].sync(None if call.name == "syncfs" else found[1], self._begun.pop(call.process, None))

    _fdatasync = _syncfs = _fsync

    def _renameat(self, arguments: list[str], call: Call) -> None:
        old, new = self._at(arguments[0], arguments[1]), self._at(arguments[2], arguments[3])
        if old and new:
            (old[0].exchange if "RENAME_EXCHANGE" in arguments[-1] else old[0].rename)(old[1], new[1])

    def _linkat(self, arguments: list[str], call: Call) -> None:
        old, new = self._at(arguments[0], arguments[1]), self._at(arguments[2], arguments[3])
        if old and new:
            old[0].link(old[1], new[1])

    def _symlinkat(self, arguments: list[str], call: Call) -> None:
        found = self._at(arguments[1], arguments[2])
        if found:
            found[0].create(found[1], (_text(arguments[0]),))

    def _unlinkat(self, arguments: list[str], call: Call) -> None:
        found = self._at(arguments[0], arguments[1])
        if found:
            found[0].unlink(found[1])

    def _mkdirat(self, arguments: list[str], call: Call) -> None:
        found = self._at(arguments[0], arguments[1])
        if found:
            found[0].create(found[1], None)

    def _ftruncate(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        if found:
            found[0].truncate(found[1], int(arguments[1]))

    def _fallocate(self, arguments: list[str], call: Call) -> None:
        found = self._find(_path(arguments[0]))
        if found:
            assert arguments[1] == "0", f"fallocate with flags is not recorded yet: {arguments[1]}"
            found[0].allocate(found[1], int(arguments[2]) + int(arguments[3]))


def _path(argument: str) -> str:
    """Return the path of a descriptor, as -y prints it; "" for what has none."""
    match = re.search(r"<(/[^>]*)>", argument)
    return match[1].removesuffix(" (deleted)") if match else ""
