#!/usr/bin/env python3
"""scripts/audit.py: ask whether a version in .ci/requirements.txt has a known vulnerability.

Runs pip-audit (the Python Packaging Authority's), which asks PyPI, or the OSV database with the variable
PIP_AUDIT_VULNERABILITY_SERVICE=osv. Ends with 1 if there is one, and names it. What could not be asked, since
there is no network or the package index in use has no such answers, is said, and is no error: then nothing is
known, good or bad.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parent.parent / ".ci" / "requirements.txt"


def judge(report: dict[str, Any]) -> tuple[list[str], list[str], int]:
    """Return (what is vulnerable, what was not asked, how many were asked) of pip-audit's JSON report."""
    vulnerable, skipped, asked = [], [], 0
    for one in report["dependencies"]:
        if "skip_reason" in one:
            skipped.append(one["name"])
            continue
        asked += 1
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            vulnerable.append(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    return vulnerable, skipped, asked


def main() -> int:
    program = shutil.which("pip-audit", path=str(Path(sys.executable).parent)) or shutil.which("pip-audit")
    if program is None:
        sys.exit("scripts/audit.py needs pip-audit: pip install pip-audit")
    command = [program, "-r", str(LOCK), "--require-hashes", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        vulnerable, skipped, asked = judge(json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"NOT AUDITED: pip-audit could not ask: {last[:300]}")
        return 0
    print(f"audited: {asked} of {asked + len(skipped)} packages, {len(vulnerable)} known vulnerabilities")
    if skipped:
        print(f"NOT AUDITED, as the package index in use has no answer: {', '.join(skipped)}")
    print("".join(f"  {line}\n" for line in vulnerable), end="")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
