"""The one taker: what a consumer knows, and every step it makes with an element.

The folders are the truth; a consumer is a view of them that lets a take cost the same whatever waits. What
becomes of a key here, and by which function (`listed`, `again`, `timers` and `blocked` are in ready):

                 read (listing)                  take                       acknowledge
    in pending/ ---------------> listed, again ---------> IN FLIGHT ----------------------> gone, or done/
                                     |   ^  ^                |   |
            _is_left_alone: debounce |   |  |                |   | requeue, defer, fail: Returning.send
                                     v   |  |                |   v
                                  timers-+  |                |  RETURNING  (no lock yet; refused by the
                                            system)
                                            |                |   |
            unblock: the other is done      |                |   +--> pending/:  again
                                 blocked ---+                |   +--> deferred/: timers, by their back-off
            block: its key is in flight ^                    |   +--> failed/, or discarded for a newer value
                                        |                    |
                              take -----+      rescan: a take that was cut short, a consumer that died

Its parts, each with what holds of it:

    ready      what may be taken next, and when more will be
    listing    pending/, as it was last listed
    in_flight  encoded key -> the element that is in flight; at most one a key
    returning  elements on their way back. No key is also in in_flight
    ended      keys whose end has not been flushed
    attempts   the notes of how often an element was taken
    drops      drop/: what may be ingested, and when
    controls   what people ask for
    done       the last acknowledged elements, on request
    ownership  the lock, or lease, that makes this the one consumer
    taking     one element, from its place to inflight/
    recovery   makes the view anew: at the start, and after a step that was cut short (`_in_doubt`)
"""

from __future__ import annotations

import logging
from time import monotonic

from ..store import transitions
from ..store.errors import UnusableInbox
from ..store.index import Index
from ..store.layout import Layout
from ..store.names import element_of, encoded_of, parse_element
from ..store.subfolders import set_mark
from .attempts import Attempts, Note
from .controls import Controls
from .done import Done
from .foreign import Foreign
from .ingest import Drops
from .listing import STUCK, Listing
from .ownership import WHOLE, ConsumerLock
from .ready import Ready
from .recovery import Recovery
from .returning import SOON, Ended, Returning, WayBack, requeued
from .settings import MAX_DELAY, Settings
from .taking import Taken, Taking, file_of
from .trust import warn_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rival import Rival

log = logging.getLogger("fsinbox")

_LOOK_INTERVAL = 0.02
"""Seconds between looks into drop/, and into control/, while there is a backlog to work on."""


def _own(layout: Layout, settings: Settings, rival: Rival | None) -> ConsumerLock:
    """Become the one consumer: by a lock, or where hosts share the inbox by a lease. Raises InboxBusy,
    OSError."""
    own: ConsumerLock
    if layout.sharing is None:
        own = ConsumerLock(layout, settings.shard)
    else:
        from .lease import Lease
        from .rival import Rival

        own = Lease(layout, settings.shard, settings.lease, rival or Rival())
    warn_root(layout)  # not before: on standby one asks again and again
    try:
        if settings.drop_recursive or settings.shard == WHOLE:  # (another part's consumer may want them)
            set_mark(layout, wanted=settings.drop_recursive)
    except BaseException:
        own.close()
        raise
    return own


class Consumer:
    """The one consumer of an inbox. Not safe for threads: its caller holds a lock around every call."""

    def __init__(self, layout: Layout, index: Index, settings: Settings, rival: Rival | None = None) -> None:
        """Become the consumer and requeue what a dead one held. `rival`: who was in the way before. Raises
        InboxBusy, UnusableInbox, OSError."""
        self._layout = layout
        self._index = index
        self.ready = Ready()
        self.in_flight: dict[str, Taken] = {}
        self.ended = Ended(layout, durable=settings.durable)
        self.attempts = Attempts(layout, settings.shard)
        self.controls = Controls(layout)
        self.drops = Drops(layout, index, settings)
        self.done = Done(layout, settings.keep_done, settings.shard.has)
        self._foreign = Foreign(layout)
        self.listing = Listing(layout, index, self._foreign, settings.shard)
        self._in_doubt, self._next_look = False, 0.0
        self.ownership = own = _own(layout, settings, rival)
        try:
            self.returning = Returning(layout, index, own, self.ready, self.attempts, self.ended)
            self.recovery = Recovery(
                layout, index, own, self._foreign, self.ready, self.attempts, self.returning, self.ended
            )
            self._taking = Taking(
                layout,
                index,
                own,
                settings,
                self.ready,
                self.in_flight,
                self.attempts,
                self.returning,
                self.ended,
                self._foreign,
            )
            self.recovery.recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop being the consumer. What is in flight stays in inflight/ for the next one: requeue it
        first."""
        self.ownership.close()
        self.drops.close()

    def has(self, taken: Taken) -> bool:
        """Tell whether this element is in flight here, and was not ended."""
        return self.in_flight.get(taken.encoded) is taken

    # --- take ---------------------------------------------------------------------------------------------

    def take(self) -> Taken | None:
        """Take the oldest element that may be taken now; None if there is none. Raises OSError, LeaseLost."""
        if self._layout.sharing:
            self.ownership.check()
        if self._in_doubt:
            self.mend()
        # In the middle of this an element may be in inflight/, or deferred/, that this view does not know of.
        # Whatever cuts it short, it must not stay there until a newer one is done, and come back after it.
        self._in_doubt = True
        taken = self._take_next()
        self._in_doubt = False
        return taken

    def mend(self) -> None:
        """If a step was cut short, make the view anew. What it had taken, and nobody has, is requeued."""
        if self._in_doubt:
            self._rescan()
            self._in_doubt = False

    def _rescan(self) -> None:
        self.listing.stale = True
        self.recovery.rescan(self.in_flight.keys(), died=False)

    def disown(self, owned: Mapping[str, object]) -> None:
        """Requeue what is in flight, but for these keys (encoded): a take was cut short before it was handed
        over."""
        for encoded in self.in_flight.keys() - owned.keys():
            del self.in_flight[encoded]
            self._in_doubt = True
        self.mend()

    def _take_next(self) -> Taken | None:
        if monotonic() >= self._next_look:
            self._look_around()
        asked = self.controls.asked
        if asked.paused:
            return None
        listings, held = 0, asked.held
        while True:
            name = self.ready.oldest(monotonic())
            if name is None or self.listing.stale:  # list first, or a due retry overtakes older keys
                if listings > self.listing.more:
                    return None
                listings += 1
                self._list()
                continue
            if held and encoded_of(name) in held:
                self.ready.pass_over(name)
                continue
            if self.in_flight and self._must_be_alone(name):
                return None
            taken = self._take(name, self.ready.pop(name))
            if taken:
                return taken

    def _take(self, name: str, deferred: str | None) -> Taken | None:
        taken = self._taking.take(name, deferred)
        if taken:
            self.in_flight[taken.encoded] = taken
            if taken.too_soon:  # (if for longer than anything is deferred, it is put off again then)
                self.defer(taken, taken.too_soon / 1e9, counted=False)
                return None
        return taken

    def _must_be_alone(self, name: str) -> bool:
        """Tell whether this, or what is in flight, is a suspect: it is only in flight alone."""
        return self.attempts.is_suspect(name) or any(taken.alone for taken in self.in_flight.values())

    def _look_around(self) -> None:
        """Now and then, between takes: apply what people ask for, ingest, send back what could not go."""
        self._apply_controls()
        if self.recovery.notice_clock():
            self._rescan()
        if self.ready and not self.controls.paused:
            self.drops.ingest()
        self._next_look = monotonic() + _LOOK_INTERVAL
        if self.returning.try_again():
            self._next_look = monotonic() + STUCK

    def _apply_controls(self) -> None:
        change = self.controls.look()
        if change and change.rescan:
            self.listing.stale = True
            self._forget_moved()
        if change and change.released:  # what was passed over is in no view: make it anew
            self.listing.stale = True
            self.ready.resume_held()

    def _forget_moved(self) -> None:
        """Forget what people have removed from deferred/, or requeued: it waits in pending/ then."""
        for encoded, deferred in list(self.ready.deferred.items()):
            if not self._layout.exists("deferred", deferred):
                del self.ready.deferred[encoded]
                self.ended.add(encoded)
                if not self._layout.exists("pending", element_of(deferred)):
                    self.attempts.forget(element_of(deferred))

    def _list(self) -> None:
        """Look at drop/ and pending/ anew; coalesce what has more than one place."""
        if gone := self._layout.where_it_went():
            raise UnusableInbox(
                f"inbox {self._layout.path} {gone}: stop, and start anew on the one that is meant"
            )
        self.ownership.check()
        self.drops.ingest()
        if not self.listing.may_be_spared(is_used_up=not (self.ready or self.returning.ways)):
            self.ready.replace(self.listing.read(self._is_held))

    def _is_held(self, encoded: str) -> bool:
        """Tell whether an element of this key may come back."""
        return encoded in self.in_flight or encoded in self.returning.ways or encoded in self.ready.deferred

    # --- the ways out -------------------------------------------------------------------------------------

    def acknowledge(self, taken: Taken) -> None:
        """The element is done. Raises OSError, LeaseLost."""
        try:
            was_there = self.done.acknowledge(taken.name)
        except OSError:
            self.returning.later(requeued(taken.name))
            self._forget(taken)
            raise
        if not was_there:
            self.ownership.verify()
        self.attempts.forget(taken.name)
        self._forget(taken)

    def requeue(self, taken: Taken, *, counted: bool) -> bool:
        """Return the element to its place. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        return self._end(taken, requeued(taken.name))

    def defer(self, taken: Taken, delay: float, *, counted: bool) -> bool:
        """Defer the element for `delay` seconds. False if a newer value waits and it was dropped."""
        self._count(taken, counted=counted)
        delay = min(delay, MAX_DELAY)
        deferred = transitions.name_deferred(self.ownership.now() + round(delay * 1e9), taken.name)
        return self._end(taken, WayBack(taken.name, taken.encoded, "deferred", deferred, delay))

    def fail(self, taken: Taken, reason: str) -> bool:
        """Give the element up. False if a newer value waits and it was dropped."""
        transitions.write_reason(self._layout, taken.name, reason)  # first: what has failed has a reason
        return self._end(taken, WayBack(taken.name, taken.encoded, "failed", taken.name))

    def _end(self, taken: Taken, way: WayBack) -> bool:
        doubt, self._in_doubt = self._in_doubt, True
        try:
            moved = self.returning.send(way)
        except OSError:
            self._forget(taken)
            raise
        self._forget(taken)
        self._in_doubt = doubt
        return moved

    def _forget(self, taken: Taken) -> None:
        """It is in flight no more."""
        if self.in_flight.get(taken.encoded) is taken:
            del self.in_flight[taken.encoded]
        self.ended.add(taken.encoded)
        if taken.encoded not in self.returning.ways:
            self.ready.unblock(taken.encoded)

    def _count(self, taken: Taken, *, counted: bool) -> None:
        attempts = taken.attempts if counted else taken.attempts - 1
        # Whoever comes back alive is no suspect any more.
        if attempts:
            self.attempts.write(taken.name, Note(attempts, *file_of(self._layout, taken), ""))
        else:
            self.attempts.forget(taken.name)

    # --- when to look again -------------------------------------------------------------------------------

    def next_look(self) -> float | None:
        """Return when (monotonic seconds) something may become takeable without any event; None if nothing
        will."""
        times = [monotonic() + SOON] if self.returning.is_soon or self._in_doubt else []
        if not self.controls.paused:
            if self.listing.more:
                times.append(monotonic() + SOON)
            times += [at for at in (self.drops.look_again, self.ready.next_time()) if at is not None]
        return min(times, default=None)

    # --- for the doctor -----------------------------------------------------------------------------------

    def tidy(self, doubtful: list[str]) -> None:
        """Put drop/ and pending/ in order, as a take would first do, and look closely at these names in
        pending/.

        A producer may publish at a name in pending/ at any moment; so what is no regular file is taken first,
        and set aside from inflight/, where nothing replaces it. Raises OSError.
        """
        self._list()
        for name in doubtful + self.ready.names(lambda name: not parse_element(name)):
            taken = self._take(name, None)
            if taken:
                self.requeue(taken, counted=False)
