"""The consumer's side of the demo: `fsinbox consume --handler indexing:index`.

For each event one file in index/, named like the key: for a module what it defines, for a commit what it
says. Doing it twice gives the same file, as it should be in a handler: an element may be delivered more than
once.
"""

import ast
import json
import os
import tokenize
from pathlib import Path

INDEX = Path("index")


def index(key: str, event: dict) -> None:
    """Index one event."""
    entry = dict(event)
    if "path" in event:
        entry |= definitions(event["path"])
    INDEX.mkdir(exist_ok=True)
    name = key.replace("/", "%2F")
    draft = INDEX / f".{name}.{os.getpid()}"
    draft.write_text(json.dumps(entry))
    draft.rename(INDEX / name)


def definitions(path: str) -> dict:
    """Count what a module defines. Some files of the standard library's own tests are broken on purpose."""
    try:
        with tokenize.open(path) as file:
            nodes = list(ast.walk(ast.parse(file.read())))
    except (SyntaxError, ValueError) as error:
        return {"error": str(error), "functions": 0, "classes": 0}
    return {
        "functions": sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
    }


def summary() -> str:
    """Say what the index holds."""
    entries = [json.loads(path.read_text()) for path in INDEX.glob("[!.]*")]
    modules = [entry for entry in entries if "path" in entry]
    functions = sum(entry["functions"] for entry in modules)
    classes = sum(entry["classes"] for entry in modules)
    files = len(entries) - len(modules)
    return (
        f"{len(modules)} modules with {functions} functions and {classes} classes; {files} files of the "
        "history"
    )


if __name__ == "__main__":
    print(summary())
