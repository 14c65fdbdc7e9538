"""`fsinbox doctor`: what the doctor found, as text or JSON, and the exit status."""

import os

import click

from ..doctor import describe, examine, measure
from ..doctor import repair as mend
from ..doctor.examination import Examination
from ..doctor.findings import Finding
from ..doctor.report import Line, unwritable
from ..store.errors import UnusableInbox
from .exits import EXIT_FAILED
from .options import printable
from .text import say

_MOST = 100
"""Places that JSON names of one finding."""


def checkup(path: str, *, repair: bool, json: bool) -> int:
    """Measure, mend if asked to, and check; return the exit status. Raises UnusableInbox."""
    path = os.path.abspath(path)
    done: list[str] = []
    report = None
    if not is_free(path):
        if repair:
            done = mend(path)
        report = examine(path)
    elif repair:
        raise UnusableInbox(f"there is no inbox at {path}: create one with `fsinbox --inbox {path} init`")
    try:
        lines = describe(measure(path))
    except OSError as error:
        lines = [unwritable(error)]
    healthy = all(line.level != "person" for line in lines) and (report is None or report.healthy)
    if json:
        tell_programs(lines, done, report, healthy=healthy)
    else:
        tell_people(lines, done, report, path, healthy=healthy)
    return 0 if healthy else EXIT_FAILED


def is_free(path: str) -> bool:
    """Tell whether there is nothing yet where the inbox would be."""
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


def tell_programs(lines: list[Line], done: list[str], report: Examination | None, *, healthy: bool) -> None:
    """Print it as JSON."""
    for line in lines:
        say(part="file system", name=line.name, level=line.level, found=line.found, chosen=line.chosen)
    for text in done:
        say(part="repair", text=text)
    for fact in report.facts if report else ():
        say(part="inbox", name="fact", level="ok", found=fact)
    for finding in report.findings if report else ():
        say(
            part="inbox",
            name=finding.kind,
            level=finding.level,
            found=finding.means,
            itself=finding.itself,
            repair=finding.repair,
            count=len(finding.signs),
            where=[sign.where for sign in finding.signs[:_MOST]],
        )
    say(part="verdict", inbox=report.path if report else None, healthy=healthy)


def tell_people(
    lines: list[Line], done: list[str], report: Examination | None, path: str, *, healthy: bool
) -> None:
    """Print it as text."""
    click.echo("file system: what was found -> what was chosen because of it")
    for line in lines:
        click.echo(f"  {line.level:<7} {line.found} -> {line.chosen}")
    if report is None:
        click.echo(f"no inbox at {path} yet")
        return
    if done:
        click.echo("repair")
        for text in done:
            click.echo(f"  {text}")
    click.echo(f"inbox {report.path}")
    for fact in report.facts:
        click.echo(f"  ok      {fact}")
    for finding in report.findings:
        show(finding)
    if healthy:
        click.echo("healthy")
    elif any(finding.level == "repair" for finding in report.findings):
        click.echo("not healthy: see above, and run this with --repair")
    else:
        click.echo("not healthy: a person must see to it; see above")


def show(finding: Finding) -> None:
    """Print a finding as text."""
    seen = {sign.seen for sign in finding.signs}
    detail = f" ({printable(seen.pop())})" if len(seen) == 1 and any(seen) else ""
    click.echo(f"  {finding.level:<7} {finding.places}: {finding.means}{detail}")
    if finding.itself:
        click.echo(f"            by itself: {finding.itself}")
    if finding.repair:
        click.echo(f"            {'--repair' if finding.mends else 'to do'}: {finding.repair}")
