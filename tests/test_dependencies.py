"""Proves that the gate's lock holds what pyproject.toml asks for, and that a known vulnerability is seen."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / ".ci" / "requirements.txt"


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(), re.M))


def asked_for(extra: str | None = None) -> list[Requirement]:
    """Return what an extra needs, and the extras that it names; without one what fsinbox itself needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    needs = []
    for need in map(Requirement, lines):
        needs += (
            [one for each in need.extras for one in asked_for(each)] if need.name == "fsinbox" else [need]
        )
    return needs


def test_the_lock_has_a_version_within_its_bounds_for_each_dependency() -> None:
    versions = locked()
    for need in asked_for() + asked_for("dev"):
        version = versions.get(canonicalize_name(need.name))
        assert version, f"{need.name} is not in .ci/requirements.txt: run sh scripts/lock"
        assert need.specifier.contains(version), f"{need} is locked at {version}: run sh scripts/lock"


def test_each_dependency_of_a_user_has_a_lower_bound() -> None:
    for need in asked_for() + asked_for("all"):
        assert any(one.operator in (">=", "==", "~=") for one in need.specifier), need


def test_each_version_of_the_lock_has_hashes() -> None:
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK.read_text(), flags=re.M)[1:]
    assert len(blocks) >= len(locked()) > 50  # (one may have two versions, by platform)
    for block in blocks:
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_an_audit_tells_what_is_vulnerable_from_what_was_not_asked() -> None:
    judge = runpy.run_path(str(ROOT / "scripts" / "audit.py"))["judge"]
    report = {
        "dependencies": [
            {"name": "click", "version": "8.5.1", "vulns": []},
            {
                "name": "jinja2",
                "version": "2.10",
                "vulns": [
                    {"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]},
                    {"id": "PYSEC-9999-1", "fix_versions": []},
                ],
            },
            {"name": "rich", "skip_reason": "Dependency not found on PyPI"},
        ]
    }
    vulnerable, skipped, asked = judge(report)
    assert vulnerable == [
        "jinja2 2.10: PYSEC-2019-217, fixed in 2.10.1",
        "jinja2 2.10: PYSEC-9999-1, fixed in no version yet",
    ]
    assert skipped == ["rich"]
    assert asked == 2
