"""Who consumes: which process holds the consumer's lock, or its lease, for each shard."""

from __future__ import annotations

import os
from time import time_ns

from ..consumer.ownership import WHOLE, Shard, is_locked, read_holder, shard_of_lock
from ..store.layout import Layout
from .stats import ConsumerStats

_USUAL_LEASE = 15.0
"""Seconds, for a lease that does not say how long it lasts."""


def consumers(layout: Layout) -> list[dict[str, object]]:
    """Return who consumes: for each shard its name ("1/1" for all keys), and its holder or None.

    Where several hosts share the inbox, `heartbeat` is the age of the lease's last heartbeat in seconds,
    `lapsed` tells whether that is too old, and `epoch` counts the consumers. Shards without a consumer are
    listed once a shard of the same division had one.
    """
    found = _by_lease(layout) if layout.sharing else _by_lock(layout)
    # If there is none at all: of the division that was used last, every shard has none.
    counts = {shard.count for shard in found} or {shard.count for shard in _locks(layout)[:1]}
    for count in counts:
        for index in range(1, count + 1):
            found.setdefault(Shard(index, count), {"holder": None})
    return [
        {"shard": str(shard)} | found[shard]
        for shard in sorted(found, key=lambda shard: (shard.count, shard.index))
    ]


def stats_of(consumer: dict[str, object], every: list[ConsumerStats]) -> ConsumerStats | None:
    """Return the statistics of a consumer (one of `consumers`); None if there is none, or it writes none."""
    for stats in every:
        process = f"pid {stats.pid} on {stats.host} "
        if stats.shard == consumer["shard"] and process in str(consumer["holder"]):
            return stats
    return None


def _by_lease(layout: Layout) -> dict[Shard, dict[str, object]]:
    from ..consumer.leases import leases, server_clock

    found: dict[Shard, dict[str, object]] = {}
    now = 0
    for held in leases(layout):
        try:
            now = now or server_clock(layout)
        except OSError:
            now = time_ns()  # the disk is full, or we may only look
        age = (now - held.sign) / 1e9
        found.setdefault(
            held.shard,
            {
                "holder": held.holder or "unknown",
                "heartbeat": round(age, 1),
                "lapsed": age > (held.lasts or _USUAL_LEASE),
                "epoch": held.epoch,
            },
        )
    return found


def _by_lock(layout: Layout) -> dict[Shard, dict[str, object]]:
    found: dict[Shard, dict[str, object]] = {
        shard: {"holder": read_holder(layout, shard.lock_file) or "unknown"}
        for shard in _locks(layout)
        if is_locked(layout, shard.lock_file)
    }
    if len(found) > 1:
        found.pop(WHOLE, None)  # its lock is shared by the consumers of all other shards
    return found


def _locks(layout: Layout) -> list[Shard]:
    """Return the shards that have had a consumer, the one that started last first."""
    times = []
    for name in os.listdir(layout.root):
        shard = shard_of_lock(name)
        if shard:
            times.append((os.lstat(name, dir_fd=layout.root).st_mtime_ns, shard))
    return [shard for _, shard in sorted(times, key=lambda pair: pair[0], reverse=True)]
