"""How a consumer behaves."""

from __future__ import annotations

from dataclasses import dataclass

from .ownership import WHOLE, Shard

MAX_DELAY = 7 * 24 * 3600.0
"""Longest back-off, in seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a consumer behaves. Times in seconds, sizes in bytes. See Inbox for what each means."""

    settle: float = 0.0
    max_settle: float = 60.0
    drop_settle: float | None = None
    ignore: tuple[str, ...] = ()
    drop_recursive: bool = False
    max_drop_size: int = 1 << 30
    durable: bool = True
    shard: Shard = WHOLE
    lease: float = 15.0
    keep_done: int = 0
