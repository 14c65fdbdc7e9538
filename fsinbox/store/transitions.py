"""The steps of an element's life, in the order they happen: docs/protocol.md, line by line.

    state       file                       leaves it by
    ----------  -------------------------  ---------------------------------------------------------------
    (a draft    tmp/<unique>               publish: rename to pending/. If its producer dies, nothing was
                                           added)
    dropped     drop/<key>                 ingest, or publish of a later value: rename to pending/; if others
                                           may still write to it, a copy of ours is renamed over it there
    waiting     pending/<n>-<key>          take: rename to inflight/                              -- no lock
                                           publish or coalesce of a newer value: renamed over, in its place
    in flight   inflight/<n>-<key>         discard: unlink                                        -- no lock
                                           go_back: rename to pending/, deferred/ or failed/; discarded if
                                           a newer value waits
    deferred    deferred/<due>-<n>-<key>   come_due: rename to inflight/; discarded if a newer value waits
                                           discard, when a newer value is taken
    failed      failed/<n>-<key>           return_to_place, when a person retries it: rename to pending/

Whatever is not marked "no lock" happens inside the section (index.py): the steps below that take an Index are
to be run by its `locked` or `try_locked`. Nothing in a section waits for a disk, nor reads a payload.

What holds at every moment, and makes the steps right (docs/protocol.md has the proofs):

 I1  Numbers strictly increase. One is given out, and what it is for published, in one section; so of two
     values of a key the higher number is the newer one, and whoever has returned from an add is followed by
     higher numbers only.
 I2  Of two files for a key the higher number is the newer value, the lower the older place. Only the consumer
     makes one of two, from the bottom up, and never of a key that is in flight or deferred: no moment shows
     an older value on top.
 I3  A key that is not known in the index is always safe: its next value is given a higher number.
 I4  What a rename may overwrite in pending/ is an older value of the same key: nobody can publish between the
     look and the rename of one that goes back.
"""

from __future__ import annotations

import os
from time import time_ns

from .files import end_delay, flush_folder, flush_pending, remove, write_whole
from .index import Index
from .layout import Layout
from .names import (
    DIGITS,
    REASON,
    deferred_name,
    element_name,
    element_of,
    is_element,
    label_for,
    parse_element,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_REASON = 128 * 1024
"""Characters of a reason that are kept: more than fsinbox itself says."""


class Unsure(OSError):
    """The system refused a step of an add after its value may have become visible."""


def _rename(layout: Layout, folder: str, name: str, to: str, new: str) -> None:
    """Rename from folder to folder, where nobody else moves the file, nor makes the new name.

    An NFS server that is started anew may be asked once more for what it has done, and then says that the
    file is gone.
    """
    try:
        os.rename(name, new, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder(to))
    except FileNotFoundError:
        if layout.sharing is None or layout.exists(folder, name) or not layout.exists(to, new):
            raise


# --- a producer: publish ------------------------------------------------------------------------------


class Published:
    """What became of the drafts of one section: of each, in order, whether a value waited, and numbers that
    may be its key's. `kept`: those that were not published, since one waited that was to be kept."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[bool, list[int]]] = []
        self.kept: set[str] = set()
        self.moved_drops: list[str] = []


def publish(
    layout: Layout,
    index: Index,
    drafts: list[tuple[str, str, str | None]],
    published: Published,
    keep: bool = False,
    let_in: Callable[[str], object] | None = None,
    swap: Callable[[Layout, str, str], bool] | None = None,
) -> None:
    """Make each file in tmp/ the waiting value of its key, new or in place of the older one. Inside the
    section.

    `drafts`: of each (name in tmp/, encoded key, the key's name in drop/ if a finished file lies there). That
    arrived before this add, so it must not be ingested after it: it is moved to the place first. `published`
    is filled as it goes. `keep`: where a value waits, or is deferred, that one stays. `let_in` is called
    with each key, and raises OSError to refuse it where none waits. `swap`: see exchanging.
    """
    held = None
    if keep:
        from .held import Held  # not at the top: most producers replace

        held = Held(layout, index)
    for done, (temporary, encoded, dropped) in enumerate(drafts):
        if held and dropped is None and held.has(encoded):  # (first: what is kept needs no number)
            published.kept.add(temporary)
            published.outcomes.append((True, []))
            continue
        if let_in is not None:  # (before the rest: what is refused takes no number, and moves no drop)
            let_in(encoded)
        number, waits, others = index.admit(encoded, len(drafts) - done)
        name = element_name(number, encoded)
        if dropped is not None:
            moved = move_drop(layout, dropped, name)
            waits |= moved
            if moved:
                published.moved_drops.append(dropped)
            if held and (moved or held.has(encoded)):
                published.kept.add(temporary)
                published.outcomes.append((True, []))
                continue
        try:
            if not (swap and waits and swap(layout, temporary, name)):
                _rename(layout, "tmp", temporary, "pending", name)
        except FileNotFoundError as error:
            if layout.sharing is None:
                raise
            # A consumer has been quick; or it was removed by hand.
            raise Unsure(error.errno, error.strerror) from error
        published.outcomes.append((waits, others))


def flush_published(layout: Layout, published: Published) -> None:
    """Make it survive a power cut. A drop that was replaced only after what replaced it: it must not be lost
    with it."""
    flush_pending(layout)
    if published.moved_drops:
        from .subfolders import flush_folders  # not at the top: most adds find nothing in drop/

        flush_folders(layout, published.moved_drops)


def move_drop(layout: Layout, name: str, place: str, folder: str = "drop") -> bool:
    """Move a file that somebody made to its place in pending/; False if it is gone. Inside the section."""
    try:
        if "/" in name:  # in a subfolder of drop/
            from .subfolders import Within

            with Within(layout, name) as (inner, last):
                return move_drop(layout, last, place, inner)
        os.rename(name, place, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder("pending"))
    except FileNotFoundError:
        return False
    return True


def move_drop_as_copy(layout: Layout, name: str, seen: os.stat_result, temporary: str, place: str) -> str:
    """Move a file from drop/ to its place in pending/, and our copy of it, in tmp/, over it: "copied"; "gone"
    or "changed", and nothing was done; or "bare" or "unsafe". Inside the section.

    `seen`: of the file that was copied. The first rename ends its name in drop/. If the copy cannot be moved
    then ("bare", or a kill), the file itself is the element. "unsafe": what was moved is not what was copied;
    it was replaced just then, and is in its place.
    """
    try:
        from .subfolders import Within  # only the consumer gets here

        with Within(layout, name) as (folder, last):
            if _identity(os.lstat(last, dir_fd=layout.folder(folder))) != _identity(seen):
                return "changed"
    except FileNotFoundError:
        return "gone"
    if not move_drop(layout, name, place):
        return "gone"
    try:
        if _identity(os.lstat(place, dir_fd=layout.folder("pending"))) == _identity(seen):
            _rename(layout, "tmp", temporary, "pending", place)
            return "copied"
    except OSError:
        return "bare"  # nobody can bring that about, and a value must not be lost for it
    return "unsafe"


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells a file, and its content, from another."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def is_in_flight(layout: Layout, encoded: str, numbers: list[int]) -> bool:
    """Tell whether one of these numbers of a key is being worked on."""
    names = [element_name(number, encoded) for number in numbers]
    if layout.sharing is None:
        # (It is only told. So what the system says against the look may count as "no", at half the price.)
        folder = layout.folder("inflight")
        return any(os.access(name, os.F_OK, dir_fd=folder, follow_symlinks=False) for name in names)
    return bool(names) and any(name in names for _, name in layout.in_flight())


# --- the consumer: take, acknowledge, requeue ---------------------------------------------------------


def take(layout: Layout, name: str) -> bool:
    """Take a waiting element; False if it is not there. No lock."""
    try:
        _rename(layout, "pending", name, "inflight", name)
    except FileNotFoundError:
        return False
    except IsADirectoryError:  # somebody's, where the element is to go
        set_aside(layout, "inflight", name, f"inflight/{name} was set aside: it is not a regular file\n")
        return take(layout, name)
    return True


Why = tuple[tuple[str, ...], tuple[str, ...]]
"""Why an element is removed: the folders that are flushed before, and after."""

ACKNOWLEDGED: Why = ((), ())
"""It is done. Not flushed: after a power cut the worst is one more delivery, and never after one of a newer
value (flush_ended)."""

SUPERSEDED: Why = (("pending",), ())
"""In flight or deferred, and a newer value waits. Its producer may not have got to flush it, and a power cut
must not take both."""

OVERTAKEN: Why = (("pending", "inflight"), ("deferred",))
"""Deferred, and a newer value was taken. Before, as above; after, as in flush_ended."""

DUPLICATE: Why = ((), ())
"""The same element, or a newer one of its key, was seen at another place."""


def discard(layout: Layout, folder: str, name: str, why: Why) -> bool:
    """Remove an element. False if it was not there: removed by hand, it is as done as it can be; or this
    consumer has lost its lease. No lock. Raises OSError.
    """
    before, after = why
    for flushed in before:
        flush_folder(layout, flushed)
    was_there = remove(layout, folder, name)
    for flushed in after:
        flush_folder(layout, flushed)
    return was_there


def keep_done(layout: Layout, name: str) -> bool:
    """Acknowledge, and keep what was done: to done/, in place of an earlier delivery of the same. False as in
    discard."""
    try:
        _rename(layout, "inflight", name, "done", name)
    except FileNotFoundError:
        return False
    return True


def newer_waits(layout: Layout, index: Index, number: int, encoded: str) -> bool:
    """Tell whether a newer value for the key of an element that is in flight, or deferred, waits. Inside the
    section."""
    try:
        # made anew here if it is damaged: what goes back must not be found in lines of before
        index.last_number()
    except OSError:
        if layout.sharing:
            raise  # the lock was lost, perhaps
        # A full disk: then no key is known, which is safe (I3).
    # Under its own number: from a producer in whose section it was taken. (Its own value is newer, and next
    # in turn.)
    return index.find(encoded) > number or layout.exists("pending", element_name(number, encoded))


def go_back(layout: Layout, index: Index, name: str, to: str, new: str) -> str:
    """Move an element that is in flight to pending/, deferred/ or failed/, under the name `new`. Inside the
    section.

    Returns "moved"; "newer" if a newer value waits: then nothing was done, and discard is next;
    "gone" if it is not there. The index is not written: its line for this number, if there is one, is right
    again. Raises OSError.
    """
    number, encoded = _parsed(name)
    if newer_waits(layout, index, number, encoded):
        return "newer"
    try:
        _rename(layout, "inflight", name, to, new)
    except FileNotFoundError:
        return "gone"
    except IsADirectoryError:  # somebody's, under this very name
        if to != "failed":
            raise
        set_aside(layout, "inflight", name, "it failed, and a directory has its name in failed/\n")
    return "moved"


def come_due(layout: Layout, index: Index, deferred: str, name: str) -> str:
    """Take a deferred element that is due: "moved"; "newer" if a newer value waits, and it is to be dropped;
    "gone".

    Inside the section. Raises OSError.
    """
    number, encoded = _parsed(name)
    if newer_waits(layout, index, number, encoded):
        return "newer"
    try:
        _rename(layout, "deferred", deferred, "inflight", name)
    except FileNotFoundError:
        return "gone"
    return "moved"


def flush_ended(layout: Layout) -> None:
    """Make the end of every element that was in flight or deferred survive a power cut.

    Called before the next element of such a key is taken. Else a power cut could keep the end of the newer
    element, and bring back the older one: it would be delivered after it.

    pending/ first: flushing inflight/ alone may keep a take, and not the rename by which what was taken had
    replaced an older value (coalesce, or a newer add): the older would be back in its place, and count as
    newer.
    """
    flush_pending(layout)
    flush_folder(layout, "inflight")
    flush_folder(layout, "deferred")


def coalesce(layout: Layout, index: Index, encoded: str, lower: int, upper: int) -> None:
    """Make one of two neighbouring places of a key: the newer value at the older place. Inside the section.

    From the bottom up: at every moment the newest value has the highest number, so a crash between two of
    these leaves something that coalesces to the newest again (I2).
    """
    old, new = element_name(lower, encoded), element_name(upper, encoded)
    try:
        if layout.sharing:
            # By way of our own folder: a consumer that was cut off may do a rename late, but not from or to
            # that folder, once its successor has removed it. In between it is in flight, from where recovery
            # moves it back to where it was.
            index.will_publish()  # a producer that comes before the late rename must not use the lower place
            _rename(layout, "pending", new, "inflight", new)
            os.rename(new, old, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"))
        else:
            os.rename(new, old, src_dir_fd=layout.folder("pending"), dst_dir_fd=layout.folder("pending"))
    except FileNotFoundError:
        pass  # removed by hand


def _parsed(name: str) -> tuple[int, str]:
    parsed = parse_element(name)
    assert parsed is not None, name
    return parsed


# --- people: what failed, was deferred, or is done, goes back to its place ----------------------------


def return_to_place(layout: Layout, index: Index, folder: str, file: str, number: int, encoded: str) -> str:
    """Queue what lies in failed/, deferred/ or tmp/ again, at its old number: "queued", "newer" or "gone".

    "newer": nothing was done, for a newer value of its key waits, is in flight or deferred. (A new number
    would be wrong: it would put an old value above a newer one.) Inside the section; the caller flushes.
    Raises OSError.
    """
    index.last_number()
    if _newer_is_held(layout, number, encoded) or newer_waits(layout, index, number, encoded):
        return "newer"
    # Twice: the consumer takes without the lock, so one may just have left pending/.
    if _newer_is_held(layout, number, encoded):
        return "newer"
    try:
        end_delay(layout, folder, file)
        _rename(layout, folder, file, "pending", element_name(number, encoded))
    except FileNotFoundError:
        return "gone"
    return "queued"


def _newer_is_held(layout: Layout, number: int, encoded: str) -> bool:
    """Tell whether a newer value of a key is in flight or deferred."""
    deferred = [element_of(name) for name in layout.names("deferred")]
    for parsed in map(parse_element, [name for _, name in layout.in_flight()] + deferred):
        if parsed and parsed[1] == encoded and parsed[0] > number:
            return True
    return False


def add_if_none_waits(
    layout: Layout, index: Index, temporary: str, encoded: str, let_in: Callable[[], object] = lambda: None
) -> bool:
    """Publish a file in tmp/ as its key's value unless one waits (`let_in`: see publish); tell whether it
    was done. Inside the section."""
    number, waits, _ = index.admit(encoded)
    if not waits:
        let_in()
        _rename(layout, "tmp", temporary, "pending", element_name(number, encoded))
    return not waits


def put_into_failed(layout: Layout, temporary: str, number: int, encoded: str, reason: str) -> bool:
    """Move a file in tmp/ to failed/, its reason beside it, unless one of its name is there; tell whether it
    was done.

    Inside the section.
    """
    name = element_name(number, encoded)
    if layout.exists("failed", name):
        return False
    write_reason(layout, name, reason)
    _rename(layout, "tmp", temporary, "failed", name)
    return True


# --- what is no element -------------------------------------------------------------------------------


def set_aside(layout: Layout, folder: str, name: str, reason: str, label: str = "") -> str:
    """Move what is no element out of the way, whatever it is, to failed/; return its name there.

    It gets a number of the present and its own name (or `label`) as key, shortened if need be. Nothing is
    opened or followed.
    """
    aside = name if is_element(name) else element_name(time_ns(), label_for(label or name))
    while layout.exists("failed", aside):
        aside = element_name(time_ns(), label_for(label or name))
    os.rename(name, aside, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder("failed"))
    layout.set_aside += 1
    write_reason(layout, aside, reason)
    return aside


def write_reason(layout: Layout, name: str, reason: str) -> None:
    """Write failed/<name>~reason.txt, whole or not at all. A full disk must not keep an element from being
    moved. Of a very long reason the middle is left out."""
    from .printing import cut  # not at the top: a producer gives no reasons

    try:
        text = cut(reason, _LONGEST_REASON)
        write_whole(layout, "failed", name + REASON, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def name_deferred(due: int, name: str) -> str:
    """Return its name in deferred/; `due` in nanoseconds. Whatever the clock says, it is a name."""
    return deferred_name(min(max(due, 0), 10**DIGITS - 1), name)
