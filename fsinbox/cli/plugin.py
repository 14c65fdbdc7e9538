"""`fsinbox status --nagios`: what a monitoring system that runs plugins understands: one line on standard
output, with performance data, and exit status 0, 1, 2 or 3. See the Monitoring Plugins guidelines:
https://www.monitoring-plugins.org/doc/guidelines.html"""

from __future__ import annotations

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..operate.report import Limits
    from ..operate.status import Summary

STATUSES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def line(level: str, text: str, data: str = "") -> str:
    """Return a plugin's line. (A `|` begins the performance data, so there is none in the text.)"""
    words = " ".join(text.replace("|", "/").split())
    return f"FSINBOX {level} - {words}" + (f" | {data}" if data else "")


def performance(found: Summary, limits: Limits) -> str:
    """Return figures as 'label'=value[unit];[warning];[critical];[minimum]."""
    ages = (found.oldest_waiting, found.oldest_in_flight, found.oldest_deferred)
    oldest = max((age for age in ages if age is not None), default=0.0)
    figures = [
        _figure("waiting", found.waiting, limits.pending),
        _figure("in_flight", found.in_flight),
        _figure("deferred", found.deferred),
        _figure("failed", found.failed, limits.failed),
        _figure("oldest", f"{oldest:.0f}s", limits.age),
        f"acknowledged={found.totals.acknowledged}c;;;0",
    ]
    if found.pace.rate is not None:
        figures.append(_figure("per_minute", f"{found.pace.rate:.4g}"))
    return " ".join(figures)


def _figure(label: str, value: float | str, critical: float | None = None) -> str:
    return f"{label}={value};;{'' if critical is None else f'{critical:g}'};0"


def run(group: click.Group) -> int:
    """Run a line that asks for a plugin: what is an error for others is UNKNOWN. Return the exit status."""
    try:
        status: int | None = group.main(prog_name="fsinbox", standalone_mode=False)
    except click.ClickException as error:
        click.echo(line("UNKNOWN", error.format_message()))
        return STATUSES["UNKNOWN"]
    return status or 0
