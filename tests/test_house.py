"""The house: who may import whom, how large a module may grow, where names are cut, and what is left out of
the coverage. ARCHITECTURE.md says why."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NamedTuple

import pytest

from fsinbox import Element, Inbox

ROOT = Path(__file__).parents[1]
NAME = "fsinbox"

FACE = ("inbox", "element", "aio", "tracing")
"""Modules at the top of the package that are the face: what a program calls."""

BELOW = {
    "store": (),
    "consumer": ("store",),
    "face": ("consumer", "store"),
    "operate": ("face", "consumer", "store"),
    "worker": ("operate", "face", "consumer", "store"),
    "doctor": ("operate", "face", "consumer", "store"),
    "web": ("operate", "face", "consumer", "store"),
    "testing": ("worker", "operate", "face", "consumer", "store"),
    "cli": ("web", "doctor", "worker", "operate", "face", "consumer", "store"),
    "package": ("face", "store"),  # fsinbox/__init__.py: the public names
    "__main__": ("cli",),
}
"""Storey -> the storeys that its modules may import, beside their own."""

LONGEST = {"module": 450, "class": 250, "function": 60}
"""Lines."""
MEDIAN = 7
"""Lines of the median function, its docstring included."""
ROOMS = 12
"""Modules and folders at the top of the package."""
WIDEST = 110
"""Columns."""


# --- what imports what --------------------------------------------------------------------------------


class Import(NamedTuple):
    """One import, wherever it stands: at the top, in a function, or for the type checker only."""

    importer: str
    imported: str
    line: int


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of the package in `root`: dotted name -> file."""
    found = {}
    for path in sorted((root / NAME).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Return every import of the package by the package."""
    known = modules(root)
    found = []
    for importer, path in known.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _imported(node, package):
                while name not in known and "." in name:  # a function or class of it
                    name = name.rpartition(".")[0]
                if name in known and name != importer:
                    found.append(Import(importer, name, getattr(node, "lineno", 0)))
    return found


def _imported(node: ast.AST, package: str) -> list[str]:
    """Return the dotted names that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]


def storey(module: str) -> str:
    """Return the storey that a module stands on."""
    _, _, rest = module.partition(".")
    top = rest.partition(".")[0]
    return "package" if not top else "face" if top in FACE else top


def upward(root: Path) -> list[str]:
    """Return the imports that go up or across."""
    return [
        f"{one.importer}:{one.line} imports {one.imported}"
        for one in imports(root)
        if storey(one.imported) not in (storey(one.importer), *BELOW.get(storey(one.importer), ()))
    ]


def circles(root: Path) -> list[str]:
    """Return the modules that import each other, directly or through others: a line for each circle."""
    arrows: dict[str, set[str]] = {}
    for one in imports(root):
        arrows.setdefault(one.importer, set()).add(one.imported)
    reached = {module: _reachable(module, arrows) for module in arrows}
    found = {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in arrows
        if module in reached[module]
    }
    return sorted(" <-> ".join(sorted(circle)) for circle in found)


def _reachable(module: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    new = set(arrows[module])
    while new:
        found |= new
        new = {further for one in new for further in arrows.get(one, ())} - found
    return found


# --- how large ----------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(root: Path) -> Iterator[tuple[str, ast.AST, int]]:
    """Go through modules, classes and functions: where, which, and how many lines it has (no decorators)."""
    for module, path in modules(root).items():
        text = path.read_text()
        tree = ast.parse(text)
        yield module, tree, len(text.splitlines())
        for node in ast.walk(tree):
            if isinstance(node, Function | ast.ClassDef):
                assert node.end_lineno
                yield f"{module}.{node.name}:{node.lineno}", node, node.end_lineno - node.lineno + 1


def too_long(root: Path) -> list[str]:
    """Return what has too many lines."""
    kinds = {ast.Module: "module", ast.ClassDef: "class"}
    return [
        f"{where} has {lines} lines"
        for where, node, lines in nodes(root)
        if lines > LONGEST[kinds.get(type(node), "function")]  # type: ignore[call-overload]
    ]


def median_function(root: Path) -> float:
    """Return how many lines the median function has."""
    return median([lines for _, node, lines in nodes(root) if isinstance(node, Function)])


def rooms(root: Path) -> list[str]:
    """Return what stands at the top of the package."""
    beside = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    return sorted(path.name for path in (root / NAME).iterdir() if path.name not in beside)


def too_wide(root: Path) -> list[str]:
    """Return the lines of code, tests and scripts that are too wide."""
    folders = [NAME, "tests", "scripts"]
    return [
        f"{path.relative_to(root)}:{number} has {len(line)} columns"
        for path in sorted(path for folder in folders for path in (root / folder).rglob("*"))
        if path.is_file() and _is_source(path)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > WIDEST
    ]


def _is_source(path: Path) -> bool:
    if path.name == "catalogue.py":
        return False  # it quotes lines of the package, as they stand there
    if path.suffix:
        return path.suffix in (".py", ".html", ".js", ".css", ".sh", ".pl", ".mjs", ".c")
    with path.open("rb") as file:
        return file.read(2) == b"#!"


CUTS = {("20", ""), ("", "19"), ("39", ""), ("40", ""), ("20", "39")}
"""Slices that take an element's name apart: of its 19 digits, or twice that in deferred/."""


def parts_of_names(root: Path) -> list[str]:
    """Return where a name is cut as a string, except in store/names.py."""
    return [
        f"{module}:{node.lineno} cuts a name: {ast.unparse(node)}"
        for module, path in modules(root).items()
        if module != f"{NAME}.store.names"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and _cuts(node.slice)
    ]


def _cuts(part: ast.Slice) -> bool:
    ends = tuple(ast.unparse(end) if end else "" for end in (part.lower, part.upper))
    return ends in CUTS or any("DIGITS" in end for end in ends)


# --- the checks, of the house as it is ----------------------------------------------------------------


def test_imports_go_down_only() -> None:
    assert {storey(module) for module in modules(ROOT)} == set(BELOW)
    assert upward(ROOT) == []


def test_no_modules_import_each_other() -> None:
    assert circles(ROOT) == []


def test_no_module_class_or_function_is_too_long() -> None:
    assert too_long(ROOT) == []


def test_the_median_function_is_short() -> None:
    assert median_function(ROOT) <= MEDIAN


def test_few_rooms_stand_at_the_top() -> None:
    assert len(rooms(ROOT)) <= ROOMS, rooms(ROOT)


def test_lines_are_narrow() -> None:
    assert too_wide(ROOT) == []


def test_names_are_cut_in_one_module() -> None:
    assert parts_of_names(ROOT) == []


# --- the checks themselves, of a house with something wrong -------------------------------------------


def _house(root: Path, **files: str) -> Path:
    """Write a package: storey__module="its source"."""
    for name, text in {"x__init__": "", **files}.items():
        path = root / NAME / f"{name.removeprefix('x').replace('___', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


UPWARD = {
    "at the top": "from ..operate import rows",
    "by its full name": "import fsinbox.operate.rows",
    "in a function": "def late():\n    from ..operate.rows import find",
    "for the type checker": "if TYPE_CHECKING:\n    from ..operate.rows import Row",
    "through the package": "from .. import operate",
}


@pytest.mark.parametrize("text", UPWARD.values(), ids=UPWARD)
def test_an_import_that_goes_up_is_found(tmp_path: Path, text: str) -> None:
    house = _house(tmp_path, store___files=text, operate___rows="", operate___x__init__="")
    (tmp_path / NAME / "operate/__init__.py").write_text("")
    (found,) = upward(house)
    assert re.match(r"fsinbox\.store\.files:\d imports fsinbox\.operate", found)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("web", "cli"), ("cli", "testing"), ("worker", "doctor"), ("doctor", "web"), ("attic", "store")],
)
def test_an_import_across_is_found(tmp_path: Path, importer: str, imported: str) -> None:
    files = {f"{importer}___a": f"from ..{imported} import b", f"{imported}___b": ""}
    assert upward(_house(tmp_path, **files)) == [f"fsinbox.{importer}.a:1 imports fsinbox.{imported}.b"]


def test_a_circle_is_found_whatever_its_length(tmp_path: Path) -> None:
    house = _house(
        tmp_path,
        store___a="from . import b",
        store___b="def late():\n    from .c import x",
        store___c="from .a import x",
        store___d="from . import a",
    )
    assert circles(house) == ["fsinbox.store.a <-> fsinbox.store.b <-> fsinbox.store.c"]


def _function(lines: int) -> str:
    return "def long():\n" + "    pass\n" * (lines - 1)


LONG: dict[str, Callable[[int], str]] = {
    "module": "pass\n".__mul__,
    "class": lambda lines: "class Long:\n" + "    x = 1\n" * (lines - 1),
    "function": _function,
}


@pytest.mark.parametrize("kind", LONG)
def test_one_line_too_many_is_found(tmp_path: Path, kind: str) -> None:
    make, most = LONG[kind], LONGEST[kind]
    assert too_long(_house(tmp_path, store___a=make(most))) == []
    (found,) = too_long(_house(tmp_path, store___a=make(most + 1)))
    assert found.endswith(f"has {most + 1} lines")


def test_the_median_is_of_functions_only(tmp_path: Path) -> None:
    house = _house(tmp_path, store___a=_function(3) + _function(9) + _function(20) + "class A:\n    x = 1\n")
    assert median_function(house) == 9


def test_a_wide_line_is_found_except_in_data(tmp_path: Path) -> None:
    house = _house(tmp_path, store___a=f"# {'x' * (WIDEST - 2)}\n# {'x' * (WIDEST - 1)}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/words.json").write_text("x" * 200)
    (tmp_path / "tests/script").write_text("#!/bin/sh\n" + "x" * 120)
    assert too_wide(house) == [
        "fsinbox/store/a.py:2 has 111 columns",
        "tests/script:2 has 120 columns",
    ]


SLICES = [*(f"name[{low}:{high}]" for low, high in sorted(CUTS)), "name[:DIGITS]", "name[DIGITS + 1 :]"]


@pytest.mark.parametrize("text", SLICES)
def test_a_cut_name_is_found_except_in_names(tmp_path: Path, text: str) -> None:
    house = _house(tmp_path, store___names=f"x = {text}", store___a=f"x = {text}\ny = name[1:] + name[:40]")
    (found,) = parts_of_names(house)
    assert found.startswith("fsinbox.store.a:1 ")


# --- what is left out of the coverage -----------------------------------------------------------------

PRAGMA = re.compile(r"#\s*pragma\b.*")
REASONED = re.compile(r"# pragma: no (cover|branch) - \w.{4,}")


def test_each_line_that_is_left_out_of_the_coverage_has_a_reason() -> None:
    pragmas = [
        f"{path.relative_to(ROOT)}:{number}: {pragma[0]}"
        for path in sorted((ROOT / "fsinbox").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (pragma := PRAGMA.search(line))
    ]
    assert [line for line in pragmas if not REASONED.search(line)] == []
    assert len(pragmas) <= 4, "test it, rather"


def test_nothing_else_is_left_out() -> None:
    coverage = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]
    assert coverage["run"]["branch"] is True
    assert coverage["run"]["source"] == ["fsinbox"]
    assert "omit" not in coverage["run"]
    assert coverage["report"]["fail_under"] == 100
    assert coverage["report"]["exclude_also"] == ["if TYPE_CHECKING:"]
    assert not {"exclude_lines", "partial_branches", "partial_also", "omit"} & coverage["report"].keys()


# --- a value, followed call by call --------------------------------------------------------------------


def levels() -> dict[str, int]:
    """Return how high each module stands: above all that it imports."""
    arrows: dict[str, set[str]] = {}
    for one in imports(ROOT):
        if one.imported != NAME:
            arrows.setdefault(one.importer, set()).add(one.imported)

    @cache
    def level(module: str) -> int:
        return 1 + max((level(lower) for lower in arrows.get(module, ())), default=0)

    return {module: level(module) for module in modules(ROOT)}


class Journey(NamedTuple):
    """Where a call led: the modules to which a value was handed, and the calls from a module to a higher
    one."""

    handed_to: set[str]
    climbs: list[str]


def follow(call: Callable[[], Any], values: tuple[Any, ...] = ()) -> Journey:
    """Call `call`, and watch every call of the package that it makes."""
    heights = levels()
    journey = Journey(set(), [])

    def note(frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or module not in heights:
            return
        arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if any(frame.f_locals[name] in values for name in arguments if name in frame.f_locals):
            journey.handed_to.add(module)
        caller = frame.f_back
        while caller and caller.f_globals.get("__name__") not in heights:
            caller = caller.f_back
        if caller and heights[caller.f_globals["__name__"]] < heights[module]:
            journey.climbs.append(f"{caller.f_globals['__name__']} -> {frame.f_code.co_qualname}")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return journey


def test_a_value_is_handed_to_few_modules_and_calls_seldom_climb(tmp_path: Path) -> None:
    """An add hands its value to at most 5 modules. What a lower module calls of a higher one (a step inside
    the section, say) is hard to follow: at most 3 in an add, 5 in a take, 2 in a retry."""
    with Inbox(tmp_path / "inbox", codec="text") as inbox:
        inbox.add("warm", "up")
        warm = inbox.take()
        assert warm
        warm.ack()
        add = follow(lambda: inbox.add("key", "a value"), ("a value", b"a value"))
        assert "fsinbox.store.files" in add.handed_to  # it was followed to its end
        assert len(add.handed_to) <= 5, add
        assert len(add.climbs) <= 3, add
        taken: list[Element | None] = []
        take = follow(lambda: taken.append(inbox.take()))
        assert len(take.climbs) <= 5, take
        element = taken[0]
        assert element
        retry = follow(element.nack)
        assert len(retry.climbs) <= 2, retry
