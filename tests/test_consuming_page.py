"""The examples of docs/consuming.md run as they stand: its shell lines one after the other, in one empty
directory, beside the modules that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers import environment

PAGE = (Path(__file__).parent.parent / "docs/consuming.md").read_text()


def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.S | re.M)
    script = ""
    for kind, text in blocks:
        name = re.match(r"# (\w+\.py)\n", text)
        assert kind == "sh" or name, f"no name of a file in the first line: {text}"
        script += f"cat >{name[1]} <<'EOF'\n{text}EOF\n" if name else f"{text}\n"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "fsinbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m fsinbox "$@"\n')
    (bin_folder / "fsinbox").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    path = f"{bin_folder}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["/bin/sh", "-eu"],
        input=script,
        cwd=work,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [work / "inbox" / name for name in ("pending", "deferred", "inflight")]
    assert [path for folder in folders for path in folder.iterdir()] == []


def options_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_the_page_names_options_that_there_are() -> None:
    from fsinbox.cli.consume import consume

    known = {name for option in consume.params for name in option.opts + option.secondary_opts}
    assert options_of(PAGE) - known == {"--max-failed"}  # of `fsinbox status`
