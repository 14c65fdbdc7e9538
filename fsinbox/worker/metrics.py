"""Metrics, in Prometheus' form: served by a running consumer, kept in a file for node_exporter, or printed
once.

Counters are those that consumers write down (see operate.stats), so they continue over a restart, and on
another host. The folders are looked into when somebody asks, once a second at most: an idle consumer that
nobody asks does nothing. Each consumer reports its own shard, so that sums over shards are right; on standby
it only reports that it is not at work.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic, time, time_ns

from ..consumer.ownership import Shard, parse_shard
from ..element import Element
from ..operate.census import census
from ..operate.consumers import consumers, stats_of
from ..operate.later import LOOKS
from ..operate.pace import last_acknowledged
from ..operate.rows import STATES
from ..operate.stats import ConsumerStats, Totals, read_stats
from ..store.errors import InboxError
from ..store.layout import Layout
from ..store.replacing import Replacement
from .observer import Observer, StatsObserver
from .outcome import Outcome

try:
    from prometheus_client import (
        REGISTRY,
        CollectorRegistry,
        Histogram,
        Metric,
        generate_latest,
        start_http_server,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    what = "which is not installed" if error.name == "prometheus_client" else f"which fails: {error}"
    raise ImportError(f"metrics need prometheus_client, {what}: pip install 'fsinbox[metrics]'") from error

log = logging.getLogger("fsinbox")

FILE_INTERVAL = 15.0
"""Seconds between two writes of the file: what node_exporter is usually asked at."""

_LASTS = 1.0
"""Seconds for which a look into the folders is good enough."""

_SHARE = 20
"""A look takes one part in so many of the time at most: with millions waiting it takes seconds, in which
handlers are slower."""

_HANDLER = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_WAKE_UP = (
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Buckets in seconds: a wake-up by inotify takes less than a millisecond, one by polling as long as a poll is
away."""

COUNTERS = {
    "taken": "Elements handed to a handler: each attempt.",
    "arrived": "Elements taken for the first time.",
    "replaced": "Elements that stood for several adds when first taken: a newer value had replaced one.",
    "acknowledged": "Elements whose handler is done with them.",
    "retried": "Attempts that failed, of which another follows.",
    "superseded": "Elements dropped because a newer value of their key waited.",
    "failed": "Elements given up on: they went to failed/.",
}
"""Member of stats.Totals, and name of a counter -> what it counts."""

_DURATION = ("fsinbox_handler_duration_seconds", "How long handlers took.")
_LATENCY = (
    "fsinbox_wakeup_latency_seconds",
    "From the arrival of an element that woke an idle consumer to the call of its handler.",
)
_LABELS = ("inbox", "shard")

_BY_STATE = {
    "elements": "How many elements there are; dropped: files in drop/ not ingested yet.",
    "oldest_age_seconds": "Since the oldest element arrived, or since its time came if it was for later; 0 "
    "if there is none.",
    "elements_for_later": f"How many of these are not to be handed out before their time; {LOOKS} of each "
    "state are looked at.",
}


@dataclass(slots=True)
class Standing:
    """How one shard of an inbox stands. Times in seconds since the epoch."""

    shard: str
    up: bool | None = None
    """Whether it has a consumer; None if nobody expects it to have one."""
    totals: Totals | None = None
    since: float | None = None
    last: float | None = None
    """When something was last acknowledged."""
    concurrency: int | None = None
    slowed: bool | None = None
    folders: Folders | None = None

    def note(self, stats: ConsumerStats) -> None:
        """Note what its consumer, which is at work, says of itself."""
        self.since, self.concurrency = stats.since, stats.concurrency
        self.slowed = bool(stats.slowed_until)


@dataclass(slots=True)
class Folders:
    """What a look into the folders has shown of a shard: `count` and `oldest` are those of a Census."""

    readable: bool = False
    """Whether it could be taken."""
    count: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, int] = field(default_factory=dict)
    later: dict[str, int] = field(default_factory=dict)
    """State -> how many are known to be for later."""
    held: int = 0
    paused: bool = False


def look(layout: Layout, shard: Shard) -> Folders:
    """Look into the folders for what is there of a shard. Raises InboxError, OSError."""
    from ..store.control import requests

    asked = requests(layout)
    found = census(layout, shard)
    later = {state: len(keys) for state, keys in found.later.items()}
    return Folders(True, found.count, found.oldest, later, sum(map(shard.has, asked.held)), asked.paused)


def families(inbox: str, standings: Iterable[Standing]) -> Iterator[Metric]:
    """Give the metrics of an inbox, by its path, but for the histograms."""
    path = label(inbox)
    counters = {
        name: CounterMetricFamily(f"fsinbox_{name}", text, labels=_LABELS) for name, text in COUNTERS.items()
    }
    by_state = {
        name: GaugeMetricFamily(f"fsinbox_{name}", text, labels=[*_LABELS, "state"])
        for name, text in _BY_STATE.items()
    }
    gauges = {
        name: GaugeMetricFamily(f"fsinbox_{name}", text, labels=_LABELS)
        for name, text in (
            ("consumer_up", "Whether a consumer is at work: 0 while there is none, or it stands by."),
            ("consumer_start_timestamp_seconds", "When the consumer began, since the epoch."),
            ("consumer_concurrency", "How many handlers may run at once."),
            ("consumer_slowed", "Whether many elements in a row failed, so that it tries one at a time."),
            ("last_success_timestamp_seconds", "When an element was last acknowledged, since the epoch."),
            ("held_keys", "Keys that people have put on hold."),
            ("paused", "Whether people have paused the consumer."),
            (
                "folders_readable",
                "Whether the folders could be looked at: without, there is no word of what lies in them.",
            ),
        )
    }
    for one in standings:
        labels = (path, one.shard)
        if one.totals:
            for name, counter in counters.items():
                counter.add_metric(labels, getattr(one.totals, name))
        values: dict[str, float | None] = {
            "consumer_up": one.up,
            "consumer_start_timestamp_seconds": one.since,
            "consumer_concurrency": one.concurrency,
            "consumer_slowed": one.slowed,
            "last_success_timestamp_seconds": one.last,
        }
        if one.folders:
            values["folders_readable"] = one.folders.readable
            if one.folders.readable:
                values |= {"held_keys": one.folders.held, "paused": one.folders.paused}
                _count(labels, one.folders, by_state)
        for name, value in values.items():
            if value is not None:
                gauges[name].add_metric(labels, value)
    yield from (
        metric for metric in (*by_state.values(), *counters.values(), *gauges.values()) if metric.samples
    )


def _count(labels: tuple[str, str], found: Folders, by_state: dict[str, GaugeMetricFamily]) -> None:
    now = time_ns()
    for state, count in found.count.items():
        by_state["elements"].add_metric((*labels, state), count)
    for state in STATES:
        elapsed = max(0, now - found.oldest[state]) / 1e9 if state in found.oldest else 0.0
        by_state["oldest_age_seconds"].add_metric((*labels, state), elapsed)
    for state, count in found.later.items():
        by_state["elements_for_later"].add_metric((*labels, state), count)


def label(text: str) -> str:
    """Return the value of a label: UTF-8, which a path need not be."""
    return os.fsencode(text).decode("utf-8", "replace")


class Metrics(Observer):
    """What a consumer tells of itself: a collector of prometheus_client's, and what is counted while it
    runs."""

    def __init__(self, path: str, shard: Shard, stats: StatsObserver) -> None:
        """`stats` counts, and is told of everything before this is. Raises UnusableInbox."""
        self._layout = Layout(path, create=False)  # of its own: another thread uses it
        self._shard = shard
        self._stats = stats
        self._up = False
        self._last: float | None = None
        self._looking = threading.Lock()
        self._stale_at = 0.0
        self._folders = Folders()
        self._file = ""
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._began = False
        self.registry = CollectorRegistry()
        self.registry.register(self)
        labels = (label(self._layout.path), str(shard))
        self._duration = Histogram(*_DURATION, _LABELS, registry=self.registry, buckets=_HANDLER).labels(
            *labels
        )
        self._latency = Histogram(*_LATENCY, _LABELS, registry=self.registry, buckets=_WAKE_UP).labels(
            *labels
        )

    def serve(self, host: str, port: int) -> str:
        """Serve them, and those of the handler (prometheus_client's own registry), by HTTP; return the URL.
        Raises OSError."""
        served = CollectorRegistry()
        served.register(self.registry)
        served.register(REGISTRY)
        server, _ = start_http_server(port, host, registry=served)
        name = str(server.server_address[0])
        return f"http://{f'[{name}]' if ':' in name else name}:{server.server_port}/metrics"

    def keep_file(self, path: str) -> None:
        """Write them to a file, now, every FILE_INTERVAL seconds from when the run has begun, and at its end.
        Raises OSError."""
        self._file = path
        self._write_file()

    def began(self) -> None:
        self._last = last_acknowledged([self._stats.writer.stats])
        self._began = self._up = True
        if self._file:
            threading.Thread(target=self._keep_file, name="fsinbox-metrics", daemon=True).start()

    def started(self, element: Element, latency: float | None) -> None:
        if latency is not None:
            self._latency.observe(latency)

    def ended(self, element: Element, outcome: Outcome, became: str, seconds: float) -> None:
        self._duration.observe(seconds)
        if became == "acknowledged":
            self._last = time()

    def stopped(self) -> None:
        self._up = False
        self._ended.set()
        if self._file:
            with self._writing:
                self._write_file()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as they are now. Called in any thread."""
        standing = Standing(str(self._shard), self._up)
        if self._began:
            # As they were written down last: what is told must not go back if we are killed and another goes
            # on from there, for Prometheus would take that for a counter that began anew.
            standing.totals = self._totals()
            standing.last = self._last
            if standing.up:
                stats = self._stats.writer.stats
                standing.note(stats)
                standing.folders = self._look()
        return families(self._layout.path, [standing])

    def _totals(self) -> Totals | None:
        try:
            return next(
                (one.totals for one in read_stats(self._layout) if one.shard == str(self._shard)), None
            )
        except (InboxError, OSError):
            return None  # that the folders cannot be read is said where they are looked into

    def _look(self) -> Folders:
        with self._looking:
            begun = monotonic()
            if begun >= self._stale_at:
                try:
                    self._folders = look(self._layout, self._shard)
                except (InboxError, OSError) as error:
                    self._folders = Folders()
                    log.warning(
                        "metrics: cannot look into the folders: %s", error, extra={"event": "metrics_failed"}
                    )
                self._stale_at = begun + max(_LASTS, (monotonic() - begun) * _SHARE)
            return self._folders

    def _write_file(self) -> None:
        """Raises OSError."""
        # For node_exporter to read, whatever the umask is for the inbox's sake.
        with Replacement(self._file, 0o644) as file:
            file.write(generate_latest(self.registry))

    def _keep_file(self) -> None:
        complained = False
        while True:
            with self._writing:
                if self._ended.is_set():
                    return
                try:
                    self._write_file()
                    complained = False
                except OSError as error:
                    if not complained:
                        log.warning(
                            "cannot write the metrics to %s: %s: tried again, and the work goes on",
                            self._file,
                            error,
                            extra={"event": "metrics_failed"},
                        )
                    complained = True
            self._ended.wait(FILE_INTERVAL)


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of "9469", "0.0.0.0:9469" or "[::1]:9469"; the loopback unless it names a host.
    Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (port.isdecimal() and port.isascii() and int(port) < 1 << 16) or (colon and not host):
        raise ValueError(f"{text!r} is no address: give PORT, HOST:PORT or [IPV6]:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def observers(
    path: str, shard: Shard, stats: StatsObserver, address: str | None, file: str | None
) -> list[Observer]:
    """Return what `consume` adds for --metrics ADDRESS and --metrics-file FILE. Raises ValueError, with a
    message for people."""
    metrics = Metrics(path, shard, stats)
    if address:
        host, port = parse_address(address)
        try:
            log.info("metrics at %s", metrics.serve(host, port), extra={"event": "metrics"})
        except OSError as error:
            raise ValueError(
                f"--metrics {address}: cannot serve there: {error.strerror or error}: "
                "name another port, or an address of this host"
            ) from error
    if file:
        try:
            metrics.keep_file(os.path.abspath(file))
        except OSError as error:
            raise ValueError(
                f"--metrics-file {file}: cannot write there: {error.strerror or error}: its folder must be "
                "there, and writable"
            ) from error
    return [metrics]


def once(layout: Layout) -> bytes:
    """Return the metrics of an inbox as text, whoever consumes it: by its folders, and by the statistics of
    its consumers. Raises UnusableInbox, OSError.
    """
    every = read_stats(layout)
    standings = {stats.shard: Standing(stats.shard, totals=stats.totals) for stats in every}
    for one in consumers(layout):
        shard = str(one["shard"])
        standing = standings.setdefault(shard, Standing(shard))
        standing.up = bool(one["holder"]) and not one.get("lapsed")
        standing.folders = look(layout, parse_shard(shard))
        stats = stats_of(one, every)
        if stats:
            standing.note(stats)
    for stats in every:
        standings[stats.shard].last = last_acknowledged([stats])
    registry = CollectorRegistry()
    registry.register(
        _Fixed([*families(layout.path, standings.values()), *_sums(layout.path, standings.values())])
    )
    return generate_latest(registry)


class _Fixed:
    """A collector of what there is already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _sums(inbox: str, standings: Iterable[Standing]) -> list[Metric]:
    """Return the histograms by their sums: into which buckets it fell, nobody remembers."""
    duration, latency = (
        HistogramMetricFamily(name, text, labels=_LABELS) for name, text in (_DURATION, _LATENCY)
    )
    for one in standings:
        if one.totals:
            labels, totals = (label(inbox), one.shard), one.totals
            ended = totals.acknowledged + totals.retried + totals.superseded + totals.failed
            duration.add_metric(labels, [("+Inf", ended)], totals.handled)
            latency.add_metric(labels, [("+Inf", totals.woken)], totals.latency)
    return [metric for metric in (duration, latency) if metric.samples]
