"""Commands that get many elements at once: `--exec 'command {}' --batch N`.

`{}`, as a word of its own, becomes the paths of all payloads. On the standard input is a JSON object a line
for each: `key`, `seq`, `attempts`, `path`, `size`, and the payload as `text`, or as `base64` if it is not
UTF-8. FSINBOX_COUNT is how many there are. Exit status as of a command for one; a failure is of all.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import tempfile

from ..element import Element
from .commands import CommandHandler
from .outcome import HandlerError, Outcome


class BatchCommandHandler(CommandHandler):
    """Runs a command for each batch."""

    def __init__(self, command: str, *, shell: bool | None = None) -> None:
        """As of CommandHandler; `{}` must be a word of its own, unless a shell runs the line."""
        super().__init__(command, shell=shell)
        if any("{fd}" in word for word in self._words):
            raise HandlerError(f"--exec {command!r}: {{fd}} is of one payload: leave it out with --batch")
        if not shell and any("{}" in word and word != "{}" for word in self._words):
            raise HandlerError(
                f"--exec {command!r}: with --batch, {{}} becomes several words, so it must be one of its own"
            )

    def handle_batch(self, elements: list[Element]) -> Outcome:
        return self._run(elements[0], lambda: self._start_batch(elements))

    def _start_batch(self, elements: list[Element]) -> subprocess.Popen[bytes]:
        paths = [element.path for element in elements]
        if self._shell:
            words = ["/bin/sh", "-c", self._words[0].replace("{}", " ".join(map(shlex.quote, paths)))]
        else:
            words = [new for word in self._words for new in (paths if word == "{}" else [word])]
        environment = os.environ | {
            "FSINBOX_COUNT": str(len(elements)),
            "FSINBOX_DIR": paths[0][: paths[0].rindex("/inflight/")],
            **self.more_environment(),
        }
        with tempfile.TemporaryFile() as lines:
            for element in elements:
                lines.write(json.dumps(_described(element)).encode() + b"\n")
            lines.seek(0)
            return self._popen(words, lines.fileno(), environment)


def _described(element: Element) -> dict[str, object]:
    data = element.data
    described: dict[str, object] = {
        "key": element.key,
        "seq": element.seq,
        "attempts": element.attempts,
        "path": element.path,
        "size": len(data),
    }
    try:
        described["text"] = data.decode("utf-8")
    except UnicodeDecodeError:
        described["base64"] = base64.b64encode(data).decode("ascii")
    return described
