"""Makes docs/terminal.svg: a terminal in which what the first lines of the README claim is done. Each command
is run, and what it prints is what is shown: python scripts/terminal.py docs/terminal.svg"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

TASKS = """
import os

def work(key, value):
    if key == "mail" and not os.path.exists("password"):
        raise RuntimeError("no password for the mail server")
    print(key, value)
"""

COMMANDS = (
    "fsinbox init",
    "fsinbox add report '{\"pages\": 1}'",
    "fsinbox add mail '\"hello\"'",
    "fsinbox add --json report '{\"pages\": 2}'      # newer: replaces, and keeps the place",
    "fsinbox consume --handler tasks:work --drain --max-attempts 1 --quiet",
    "fsinbox failed",
    "touch password && fsinbox retry mail",
    "fsinbox consume --handler tasks:work --drain --quiet",
    "fsinbox status | tail -n 1",
)


def shown() -> list[tuple[str, str]]:
    """Return each command, and what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tasks.py").write_text(TASKS)
        programs = Path(folder) / "bin"
        programs.mkdir()
        (programs / "fsinbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m fsinbox "$@"\n')
        (programs / "fsinbox").chmod(0o755)
        ours = {name: text for name, text in os.environ.items() if not name.startswith("FSINBOX_")}
        path = f"{programs}{os.pathsep}{ours['PATH']}"
        package = str(Path(__file__).resolve().parents[1])
        found = []
        for command in COMMANDS:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=folder,
                env=ours | {"PATH": path, "PYTHONPATH": package},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            text = done.stdout.replace(folder, "/srv/app")
            found.append((command, re.sub(r"^\d{4}-\S+ \S+ ", "12:00:00 ", text, flags=re.M)))
        return found


def picture(lines: list[tuple[str, str]]) -> str:
    """Return it as SVG, which fetches nothing."""
    console = Console(record=True, width=96, file=StringIO(), force_terminal=True)
    for command, printed in lines:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        for line in printed.splitlines():
            style = "red" if " ERROR " in line else "green" if line.startswith("OK") else ""
            console.print(Text(line, style))
    text = console.export_svg(title="fsinbox", unique_id="terminal")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.S)
    text = text.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(shown()))
