"""The steps of an element's life, in the order they happen. Every system call that a guarantee rests on is here.

    state      file                         leaves it by
    -------    -------------------------    ---------------------------------------------------------------------------
    (being     tmp/<unique>                 publish: rename to pending/        (a producer that dies here added nothing)
     written)
    dropped    drop/<key>                   adopt: rename to pending/, under the admission lock
    waiting    pending/<n>-<key>            take: rename to inflight/, then remove the hint
                                            publish or fold of a newer value: rename over it, in its place
    out        inflight/<n>-<key>           ack: unlink
                                            put back: link to pending/, unlink     (dropped if a newer value waits)
                                            defer: rename to deferred/             (dropped if a newer value waits)
                                            fail: rename to failed/                (dropped if a newer value waits)
    deferred   deferred/<due>-<n>-<key>     due: rename to inflight/               (dropped if a newer value waits)
    failed     failed/<n>-<key>             only by hand

What holds at every moment, and makes the steps right (docs/protocol.md has the proofs):

 I1  Numbers strictly increase, and a number is only given out under the admission lock, to a key that has no hint that
     counts. So a hint, where there is one, holds the highest number ever given out for its key, and a value published
     at a lower number belongs to an add that began before that one was admitted: dropping it loses nothing.
 I2  Of two files in pending/ for one key the higher number is the newer value, the lower the older place. Only the
     consumer takes one away, and it folds from the bottom up, so that no moment shows an older value on top.
 I3  A missing hint is always safe: the next add is given a higher number.
 I4  What a rename may overwrite in pending/ is an older or concurrent value of the same key. What comes *back* to
     pending/ never overwrites: it is linked.
 I5  A number that is given out to a key after an add of it has returned is higher than the place of that add's value, and
     came later: a listing that shows what was added there shows the value below it, too, or the consumer has it.
     (So a consumer may work from an old listing.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from time import time_ns

from .layout import Layout, let_go
from .names import DIGITS, REASON, decode_key, deferred_name, element_name, is_element, label_for, parse_element
from .sequence import HIGHEST, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW = "new"
REPLACED = "replaced"
BEHIND = "behind"

GIVEN_BACK = "back"
"""In a hint, instead of the boot: an element was put back here. It tells that the key waits, but not where to add."""

FUTURE = 24 * 3600 * 10**9
"""How far ahead of the clock, in nanoseconds, a number found in a name is believed."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


_FEW = 4
"""Up to so many files are flushed one by one: syncfs also writes out whatever else waits on their file system."""


# --- a producer: write, admit, publish ---------------------------------------------------------------------------

label: Callable[[Layout, str], object] | None = None
"""Called with each file in tmp/ that is about to be published: fsinbox.tracing leaves a producer's trace on it."""


def unused_temporary(layout: Layout) -> str:
    """Return a name for a file in tmp/ that no other process, thread or host will choose."""
    return f"{layout.token}.{next(layout.serial)}"


def create_temporary(layout: Layout) -> tuple[str, int]:
    """Create a new file in tmp/ and return (name, descriptor open for writing)."""
    while True:
        name = unused_temporary(layout)
        try:
            fd = os.open(name, _CREATE, layout.file_mode, dir_fd=layout.folder("tmp"))
        except FileExistsError:
            continue
        try:
            if layout.file_mode & 0o060:
                os.fchmod(fd, layout.file_mode)  # shared on request: the umask must not take it back
        except BaseException:
            let_go(fd)
            discard_temporary(layout, name)
            raise
        return name, fd


def write_payload(layout: Layout, data: bytes, *, durable: bool) -> str:
    """Write `data` to a new file in tmp/ and return its name."""
    name, fd = create_temporary(layout)
    try:
        try:
            write_all(fd, data)
            if durable:
                flush(fd)  # before the rename: a name must never become durable before what it names
        finally:
            os.close(fd)
    except BaseException:
        discard_temporary(layout, name)
        raise
    return name


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`: one write may do only a part, on a full disk for one."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def discard_temporary(layout: Layout, name: str) -> None:
    """Remove a file in tmp/ that will not be published."""
    try:
        os.unlink(name, dir_fd=layout.folder("tmp"))
    except OSError:
        pass  # litter; the consumer sweeps tmp/


def flush(fd: int) -> None:
    """Make a file's data, or a folder's entries, survive a power cut. Never call it again after it failed.

    On macOS fsync does not empty the drive's cache; F_FULLFSYNC does (fcntl(2) there).
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def flush_all(layout: Layout, folder: str, names: list[str]) -> None:
    """Make the content of these files survive a power cut, in one go (syncfs(2)) if they are many and the system can.

    A file that is gone by now is passed over. Raises OSError.
    """
    syncfs = None
    if len(names) > _FEW:
        import ctypes

        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs:
        if syncfs(layout.folder(folder)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), folder)
        return
    for name in names:
        try:
            fd = os.open(name, _READ, dir_fd=layout.folder(folder))
        except FileNotFoundError:
            continue
        try:
            flush(fd)
        finally:
            os.close(fd)


def find_place(layout: Layout, sequence: Sequence, encoded: str, dropped: str | None) -> tuple[int, bool]:
    """Return (the number at which a value for this key must be published now, whether an older value waits).

    `dropped` is the key's name in drop/ if a finished file lies there: it arrived before this add, so it must not be
    adopted after it. It is moved to the place first, and the caller's value then replaces it.
    """
    if dropped is None:
        hint = read_hint(layout, encoded)
        if hint and hint[1] == sequence.boot:  # no lock: replacing is one rename
            return hint[0], layout.exists("pending", element_name(hint[0], encoded))
    with sequence:
        number, waits = admit(layout, sequence, encoded)
        if dropped is not None:
            # Inside the lock: outside, the place could be given up and a newer drop be moved to it.
            waits |= move_drop(layout, sequence, "drop", dropped, number, encoded)
    return number, waits


def admit(layout: Layout, sequence: Sequence, encoded: str) -> tuple[int, bool]:
    """Return (the key's place, whether an older value waits): the place is the one its hint names, or the next number,
    with a hint for it. The caller holds the lock."""
    last = last_number(layout, sequence)
    hint = read_hint(layout, encoded)
    if hint and hint[0] > last:
        hint = None  # nobody gave that number out
    waits = bool(hint and layout.exists("pending", element_name(hint[0], encoded)))
    if hint and hint[1] == sequence.boot:
        return hint[0], waits
    if hint and hint[1] != GIVEN_BACK and waits and layout.sharing is None:
        # From an earlier boot: it only counts if its element is there (and begin_boot has removed the doubtful ones). Where
        # hosts share the inbox, it never does: one that was cut off may have done both late.
        write_hint(layout, encoded, hint[0], sequence.boot)
        return hint[0], waits
    number = sequence.advance(last)
    # Before the element, and under the lock: whoever finds no hint now must get a higher number.
    write_hint(layout, encoded, number, sequence.boot)
    return number, waits


def publish(layout: Layout, temporary: str, name: str) -> None:
    """Make the file in tmp/ the waiting value `name`, new or in place of the older one, at once."""
    _rename(layout, "tmp", temporary, "pending", name)


def _rename(layout: Layout, folder: str, name: str, to: str, new: str) -> None:
    """Rename from folder to folder, where nobody else moves the file, nor makes the new name.

    An NFS server that is started anew may be asked once more for what it has done, and then says that the file is gone.
    """
    try:
        os.rename(name, new, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder(to))
    except FileNotFoundError:
        if layout.sharing is None or layout.exists(folder, name) or not layout.exists(to, new):
            raise


class Unsure(OSError):
    """The system refused a step of an add after its value may have become visible."""


def add_shared(layout: Layout, sequence: Sequence, temporary: str, encoded: str, dropped: str | None) -> bool:
    """find_place, publish and confirm for an inbox that several hosts share: all under the lock, in one section.

    Tell whether an older value waited. Raises Unsure, or another OSError if the value did not become visible.
    """
    with sequence:
        number, waits = admit(layout, sequence, encoded)
        if dropped is not None:
            waits |= move_drop(layout, sequence, "drop", dropped, number, encoded)
        name = element_name(number, encoded)
        try:
            publish(layout, temporary, name)
        except FileNotFoundError as error:
            raise Unsure(error.errno, error.strerror) from error  # a consumer has been quick; or it was removed by hand
        try:
            if read_hint(layout, encoded) != (number, sequence.boot):
                _leave_place(layout, sequence, name, number, encoded)
            sequence.finish()
        except OSError as error:
            raise Unsure(error.errno, error.strerror) from error
    return waits


def confirm(layout: Layout, sequence: Sequence, name: str, number: int, encoded: str) -> None:
    """After publishing: see to it that whoever adds this key from now on gets a place above this value (I5).

    A producer that was paused between finding its place and publishing there may have published at a place that was
    given up, behind the consumer's back. Then, before it returns, the key gets a higher number, with nothing there yet.
    """
    if read_hint(layout, encoded) == (number, sequence.boot) or not layout.exists("pending", name):
        return  # still the key's place; or the consumer has the value
    with sequence:
        _leave_place(layout, sequence, name, number, encoded)


def _leave_place(layout: Layout, sequence: Sequence, name: str, number: int, encoded: str) -> None:
    """Give the key the next number, with nothing there, if its place was given up. The caller holds the lock."""
    last = last_number(layout, sequence)
    if read_hint(layout, encoded) != (number, sequence.boot) and layout.exists("pending", name):
        write_hint(layout, encoded, sequence.advance(last), sequence.boot)
        if not layout.exists("pending", name):
            remove_hint(layout, encoded)  # just taken: what comes now should not go before keys that came earlier


def flush_pending(layout: Layout) -> None:
    """Make every rename into pending/ so far survive a power cut.

    keys/ is not flushed: a lost hint costs nothing (I3), and one that came back from before is not believed (admit).
    """
    flush(layout.folder("pending"))


def is_out(layout: Layout, encoded: str) -> bool:
    """Tell whether an element of this key is being worked on. inflight/ holds as few names as the consumer takes at once."""
    names = layout.names("inflight") if layout.sharing is None else [name for _, name in layout.out()]
    return any(parsed and parsed[1] == encoded for parsed in map(parse_element, names))


def last_number(layout: Layout, sequence: Sequence) -> int:
    """Return the last number given out. The caller holds the lock."""
    last, boot = sequence.read()
    return last if sequence.is_known(last, boot) else begin_boot(layout, sequence, last)


def begin_boot(layout: Layout, sequence: Sequence, last: int) -> int:
    """The first admission after a boot: find the highest number in use, and return it. The caller holds the lock.

    A power cut may have brought back an old `sequence`, and old hints. So `last` is made to cover every number that is
    in use (but for absurd ones), and a key that has more than one file loses its hint: in pending/, or in inflight/ or
    deferred/, from where it may come back to a higher place than the hint's. A bit a key, in one fixed megabyte, is enough
    for that: by chance some other key loses its hint as well, which costs nothing (I3).
    """
    limit = max(last, time_ns()) + FUTURE
    seen = bytearray(1 << 20)
    for folder in ("pending", "inflight", "deferred", "failed"):
        for name in _names_one_by_one(layout, folder):
            parsed = parse_element(name[20:] if folder == "deferred" else name)
            if parsed is None or parsed[0] > limit:
                continue
            number, encoded = parsed
            last = max(last, number)
            if folder != "failed":
                byte, bit = divmod(hash(encoded) & 0x7FFFFF, 8)
                if seen[byte] & 1 << bit and decode_key(encoded) is not None:
                    remove_hint(layout, encoded)
                seen[byte] |= 1 << bit
    sequence.write(last)
    return last


def _names_one_by_one(layout: Layout, folder: str) -> Iterator[str]:
    """Go through a folder without keeping a million names; where several hosts share the inbox, through every consumer's."""
    if folder == "inflight" and layout.sharing:
        yield from (name for _, name in layout.out())
        return
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layout.folder(folder))
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name
    finally:
        let_go(fd)


# --- hints: keys/<key> -> <number>.<boot> ------------------------------------------------------------------------


def read_hint(layout: Layout, encoded: str) -> tuple[int, str] | None:
    """Return (number, boot) of a key's hint, None if it has none. A damaged hint is (0, "")."""
    try:
        target = os.readlink(encoded, dir_fd=layout.fresh("keys"))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a symlink: somebody else's file
            return 0, ""
        raise
    digits, _, boot = target.partition(".")
    if len(digits) != DIGITS or not digits.isdecimal() or not digits.isascii():
        return 0, ""  # not written by us
    number = int(digits)
    if number >= HIGHEST:
        return 0, ""  # nor this: nothing must be published under such a number
    return number, boot


def write_hint(layout: Layout, encoded: str, number: int, boot: str) -> None:
    """Set a key's hint. The caller holds the admission lock."""
    target = f"{number:019d}.{boot}"
    while True:
        try:
            os.symlink(target, encoded, dir_fd=layout.folder("keys"))
            return
        except FileExistsError:
            remove_hint(layout, encoded)  # a moment without a hint is safe (I3)


def remove_hint(layout: Layout, encoded: str) -> None:
    """Remove a key's hint, if it has one; what cannot be removed so, a directory, is set aside."""
    try:
        os.unlink(encoded, dir_fd=layout.folder("keys"))
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError) as error:  # the latter is what macOS says
        try:
            folder = stat.S_ISDIR(os.lstat(encoded, dir_fd=layout.folder("keys")).st_mode)
        except FileNotFoundError:
            return
        if not folder:
            raise error
        set_aside(layout, "keys", encoded, f"keys/{encoded} was set aside: it is a directory\n")


def withdraw_hint(layout: Layout, encoded: str, seen: str) -> bool:
    """Remove a hint that was found to be wrong, if it still says `seen`; tell whether it did. The caller holds the lock.

    Under the lock no producer writes one meanwhile. A producer that has read it, and publishes at its place, finds it gone
    (confirm), and everybody else gets a higher number (I3).
    """
    try:
        if os.readlink(encoded, dir_fd=layout.fresh("keys")) != seen:
            return False
    except OSError:
        return False  # gone; or no link, which is set aside instead
    remove_hint(layout, encoded)
    return True


def note_given_back(layout: Layout, encoded: str, number: int) -> None:
    """Leave word that the key waits at `number`, unless a producer has been admitted for it meanwhile."""
    try:
        os.symlink(f"{number:019d}.{GIVEN_BACK}", encoded, dir_fd=layout.folder("keys"))
    except OSError:
        pass  # EEXIST: there is better word; anything else (a full disk): word is only for what add reports


# --- the consumer: take, acknowledge, put back, defer, give up ----------------------------------------------------


def newer_waits(layout: Layout, number: int, encoded: str) -> bool:
    """Tell whether a newer value for the key of an element that is out, or deferred, waits."""
    hint = read_hint(layout, encoded)
    if hint and hint[0] > number and layout.exists("pending", element_name(hint[0], encoded)):
        return True
    # Under its own number: from a producer that had read the hint before the element was taken.
    return layout.exists("pending", element_name(number, encoded))


def take(layout: Layout, name: str, number: int, encoded: str) -> str:
    """Take a waiting element: "taken"; "gone" if it is not there; "fold" if its key has another place: fold first."""
    hint = read_hint(layout, encoded)
    if hint and hint[0] != number and layout.exists("pending", element_name(hint[0], encoded)):
        return "fold"
    try:
        _rename(layout, "pending", name, "inflight", name)
    except FileNotFoundError:
        return "gone"
    except IsADirectoryError:  # somebody's, where the element is to go
        set_aside(layout, "inflight", name, f"inflight/{name} was set aside: it is not a regular file\n")
        return take(layout, name, number, encoded)
    remove_hint(layout, encoded)  # the one that was read, or one that came meanwhile: from here on an add queues anew
    return "taken"


def take_deferred(layout: Layout, deferred: str, name: str, number: int, encoded: str) -> bool:
    """Take a deferred element that is due. False if it is gone, or was dropped because a newer value waits."""
    if newer_waits(layout, number, encoded):
        flush_pending(layout)  # the newer one must not be lost together with this one
        drop_deferred(layout, deferred)
        return False
    try:
        _rename(layout, "deferred", deferred, "inflight", name)
    except FileNotFoundError:
        return False
    return True


def drop_deferred(layout: Layout, deferred: str) -> None:
    """Remove a deferred element that a newer value supersedes."""
    try:
        os.unlink(deferred, dir_fd=layout.folder("deferred"))
    except FileNotFoundError:
        pass


def drop_late(layout: Layout, name: str) -> None:
    """Remove a waiting value whose producer published it below an element of its key that is out, deferred, or back.

    Flushed before: that element must not be lost together with this one (its producer may not have flushed it).
    """
    flush_ended(layout)
    try:
        os.unlink(name, dir_fd=layout.folder("pending"))
    except FileNotFoundError:
        pass


def acknowledge(layout: Layout, name: str) -> bool:
    """Remove an element that was worked on. Not flushed: after a power cut the worst is one more delivery.

    But not after one of a newer value: see flush_ended. False if it was not there: removed by hand, it is as acknowledged
    as it can be; or this consumer has lost its lease.
    """
    try:
        os.unlink(name, dir_fd=layout.folder("inflight"))
    except FileNotFoundError:
        return False
    return True


def keep_done(layout: Layout, name: str) -> bool:
    """Acknowledge, and keep what was done: to done/, in place of an earlier delivery of the same. False as in acknowledge."""
    try:
        _rename(layout, "inflight", name, "done", name)
    except FileNotFoundError:
        return False
    return True


def oldest_first(layout: Layout, folder: str) -> list[str]:
    """Return the names of the elements in a folder, in the order in which they came there (by the times of their inodes)."""
    times = []
    for name in layout.names(folder):
        try:
            times.append((os.lstat(name, dir_fd=layout.folder(folder)).st_ctime_ns, name))
        except FileNotFoundError:
            continue
    return [name for _, name in sorted(times) if is_element(name)]


def flush_ended(layout: Layout) -> None:
    """Make the end of every element that was out or deferred survive a power cut.

    Called before the next element of such a key is taken. Else a power cut could keep the end of the newer element, and
    bring back the older one: it would be delivered after it.

    pending/ first: on Btrfs, flushing inflight/ alone keeps a take, and not the rename by which what was taken had replaced an
    older value (a fold, or a newer add): the older would be back in its place, and count as newer.
    """
    flush_pending(layout)
    flush(layout.folder("inflight"))
    flush(layout.folder("deferred"))


def supersede_deferred(layout: Layout, deferred: str) -> None:
    """Remove a deferred element when a newer value of its key has been taken: flushed before and after, for the same
    reasons as in drop_superseded and in flush_ended."""
    flush_pending(layout)
    flush(layout.folder("inflight"))
    drop_deferred(layout, deferred)
    flush(layout.folder("deferred"))


def drop_stranded(layout: Layout, name: str) -> None:
    """Remove what could not be put back, when a newer value of its key is out: flushed as in supersede_deferred."""
    flush_pending(layout)
    flush(layout.folder("inflight"))
    acknowledge(layout, name)
    flush(layout.folder("inflight"))


def put_back(layout: Layout, name: str, number: int, encoded: str) -> bool:
    """Return an unacknowledged element to its place. False if it was dropped, because a newer value waits."""
    hint = read_hint(layout, encoded)
    waits = not (hint and hint[0] > number and layout.exists("pending", element_name(hint[0], encoded)))
    if waits:
        try:
            # A link, not a rename: it must not overwrite a newer value that has landed here meanwhile (I4).
            os.link(name, name, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"), follow_symlinks=False)
        except FileNotFoundError:
            return False  # removed by hand
        except FileExistsError:
            waits = _same_file(layout, "inflight", "pending", name)  # half of an earlier put_back, perhaps
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EMLINK):
                raise
            # Linux lets nobody link what belongs to another user (protected_hardlinks in proc(5)): a dropped file. And a
            # name more may be too much for a full disk (on tmpfs each counts as an inode), where a rename is not.
            waits = rename_if_free(layout, name)
        if waits:
            note_given_back(layout, encoded, number)
    drop_superseded(layout, name)  # by what has just been linked, or by the newer value
    return waits


def drop_superseded(layout: Layout, name: str) -> None:
    """Remove an element that is out, since this value or a newer one waits.

    Flushed in between: a power cut may keep the later of two operations without the earlier, and must find one of them.
    """
    flush_pending(layout)
    acknowledge(layout, name)


def release_twin(layout: Layout, name: str) -> bool:
    """Undo a take that changed nothing, since both names were of one file (rename(2)): a put_back had been cut short.

    True if it was so; the element waits, and can be taken. Either name may go: what waits is this value, or a newer one.
    """
    if not _same_file(layout, "inflight", "pending", name):
        return False
    acknowledge(layout, name)
    return True


def rename_if_free(layout: Layout, name: str) -> bool:
    """Move an element from inflight/ to pending/ unless one is there; tell whether it was moved. Raises OSError."""
    try:
        return _rename_if_free(layout, "inflight", name, "pending", name)
    except FileNotFoundError:
        return False  # removed by hand


def _rename_if_free(layout: Layout, folder: str, name: str, to: str, new: str) -> bool:
    """Rename from folder to folder unless the new name is there; tell whether it was done. Raises OSError.

    By renameat2(2), which Python has no call for, and not every file system (NFS, for one) has either.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "another user's file cannot be put back on this system", name)
    noreplace = 1
    if libc.renameat2(layout.folder(folder), os.fsencode(name), layout.folder(to), os.fsencode(new), noreplace) == 0:
        return True
    error = ctypes.get_errno()
    if error == errno.EEXIST:  # a newer value waits there
        return False
    raise OSError(error, os.strerror(error), name)


def defer(layout: Layout, name: str, number: int, encoded: str, due: int) -> str | None:
    """Lay an element that is out aside until `due` (ns since the epoch); its name there, or None if it was dropped."""
    if newer_waits(layout, number, encoded):
        drop_superseded(layout, name)
        return None
    deferred = deferred_name(min(due, 10**DIGITS - 1), name)  # whatever the clock says, it must remain a name
    try:
        _rename(layout, "inflight", name, "deferred", deferred)
    except FileNotFoundError:
        return None  # removed by hand
    return deferred


def fail(layout: Layout, name: str, number: int, encoded: str, reason: str) -> bool:
    """Give up on an element that is out: to failed/, its reason beside it. False if dropped: a newer value waits."""
    if newer_waits(layout, number, encoded):
        drop_superseded(layout, name)
        return False
    _write_reason(layout, name, reason)
    try:
        _rename(layout, "inflight", name, "failed", name)
    except IsADirectoryError:  # somebody's, under this very name
        set_aside(layout, "inflight", name, reason)
    except FileNotFoundError:  # removed by hand
        try:
            os.unlink(name + REASON, dir_fd=layout.folder("failed"))
        except FileNotFoundError:
            pass
        return False
    return True


def set_aside(layout: Layout, folder: str, name: str, reason: str) -> str:
    """Move what is no element out of the way, whatever it is, to failed/; return its name there.

    It gets a number of the present and its own name as key, shortened if need be. Nothing is opened or followed.
    """
    aside = name if is_element(name) else element_name(time_ns(), label_for(name))
    while layout.exists("failed", aside):
        aside = element_name(time_ns(), label_for(name))
    os.rename(name, aside, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder("failed"))
    _write_reason(layout, aside, reason)
    return aside


def remove_leftover(layout: Layout, folder: str, name: str) -> None:
    """Remove what a process that died has left behind, and what is nobody's element: a draft, a probe, a lone reason."""
    try:
        os.unlink(name, dir_fd=layout.folder(folder))
    except FileNotFoundError:
        pass


def _write_reason(layout: Layout, name: str, reason: str) -> None:
    """Write failed/<name>~reason.txt, whole or not at all. A full disk must not keep an element from being moved."""
    try:
        temporary = write_payload(layout, reason.encode("utf-8", "backslashreplace"), durable=False)
        os.rename(temporary, name + REASON, src_dir_fd=layout.folder("tmp"), dst_dir_fd=layout.folder("failed"))
    except OSError:
        pass


def fold(layout: Layout, encoded: str, numbers: list[int]) -> int:
    """Make one of several places of a key, newest value at the oldest place; return its number. `numbers` ascend."""
    pending = layout.folder("pending")
    lowest = element_name(numbers[0], encoded)
    # From the bottom up: at every moment the newest value has the highest number, so a crash between two renames, or a
    # producer that publishes at one of these places meanwhile, leaves something that folds to the newest again (I2).
    for number in numbers[1:]:
        if number != numbers[1]:
            flush_pending(layout)  # a power cut must not keep the later of two renames without the earlier
        try:
            if layout.sharing:
                _fold_by_taking(layout, element_name(number, encoded), lowest)
            else:
                os.rename(element_name(number, encoded), lowest, src_dir_fd=pending, dst_dir_fd=pending)
        except FileNotFoundError:
            continue
    remove_hint(layout, encoded)
    note_given_back(layout, encoded, numbers[0])
    return numbers[0]


def _fold_by_taking(layout: Layout, name: str, lowest: str) -> None:
    """Move a value down to its key's oldest place by way of this consumer's own folder.

    A consumer that was cut off, and has lost its lease, may do a rename late. From or to its own folder it can not, once its
    successor has removed that. In between, the value is out, from where recovery puts it back to where it was.
    """
    _rename(layout, "pending", name, "inflight", name)
    os.rename(name, lowest, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"))


# --- people: what failed, was laid aside, or is done, goes back to its place --------------------------------------


def return_to_place(layout: Layout, sequence: Sequence, folder: str, file: str, number: int, encoded: str) -> str:
    """Queue what lies in failed/, deferred/ or tmp/ again, at its old number: "queued", "newer" or "gone". Raises OSError.

    "newer": nothing was done, for a newer value of its key waits, is out or deferred, or is about to be published. No newer one
    can be lost: each has a higher number, or is at this very place, which is not overwritten (I2, I4). (A new number would be
    wrong: it would put an old value above one that was put back meanwhile.)

    Under the lock, so that no newer one is admitted between the look and the move: it could be listed, taken and done before
    this one is seen, and be followed by it. One that is admitted later is in no listing without this one (I5). The caller
    flushes.
    """
    name = element_name(number, encoded)
    with sequence:
        last_number(layout, sequence)
        outcome = "newer"
        if not _newer_is_about(layout, sequence, number, encoded):
            try:
                if _move_if_free(layout, folder, file, "pending", name):
                    note_given_back(layout, encoded, number)
                    outcome = "queued"
            except FileNotFoundError:
                outcome = "gone"
        sequence.finish()
    return outcome


def _newer_is_about(layout: Layout, sequence: Sequence, number: int, encoded: str) -> bool:
    """Tell whether a newer value of a key waits, is out or deferred, or has been given its place. The caller holds the lock.

    Twice where the consumer holds it, around the look at where it waits: so that one that goes to and fro is seen.
    """

    def held() -> bool:
        deferred = [name[20:] for name in layout.names("deferred")]
        for parsed in map(parse_element, [name for _, name in layout.out()] + deferred):
            if parsed and parsed[1] == encoded and parsed[0] > number:
                return True
        return False

    if held():
        return True
    hint = read_hint(layout, encoded)
    if hint and hint[0] > number and (hint[1] == sequence.boot or layout.exists("pending", element_name(hint[0], encoded))):
        return True
    return held()


def _move_if_free(layout: Layout, folder: str, name: str, to: str, new: str) -> bool:
    """_rename_if_free; where the file system has no such call, by a link, which a consumer may find before the old name goes."""
    try:
        return _rename_if_free(layout, folder, name, to, new)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
    try:
        os.link(name, new, src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder(to), follow_symlinks=False)
    except FileExistsError:
        return False
    remove_leftover(layout, folder, name)
    return True


def add_if_none_waits(layout: Layout, sequence: Sequence, temporary: str, encoded: str) -> bool:
    """Publish a file in tmp/ as its key's value unless one waits; tell whether it was done. It stays in tmp/ if not."""
    with sequence:
        number, waits = admit(layout, sequence, encoded)
        name = element_name(number, encoded)
        # (Where none is there yet, but a producer is about to publish its own there: that one replaces this.)
        free = not waits and _move_if_free(layout, "tmp", temporary, "pending", name)
        if free and read_hint(layout, encoded) != (number, sequence.boot):
            _leave_place(layout, sequence, name, number, encoded)
        sequence.finish()
    return free


def put_into_failed(layout: Layout, temporary: str, number: int, encoded: str, reason: str) -> bool:
    """Lay a file in tmp/ into failed/, its reason beside it, unless one of its name is there; tell whether it was done."""
    name = element_name(number, encoded)
    if not _move_if_free(layout, "tmp", temporary, "failed", name):
        return False
    _write_reason(layout, name, reason)
    return True


# --- drop/ --------------------------------------------------------------------------------------------------------


def move_drops(layout: Layout, sequence: Sequence, folder: str, places: list[tuple[str, int, str]]) -> list[bool | OSError]:
    """Move files that no producer of ours wrote to their places in pending/: each (name, number its key was admitted to, encoded
    key). Return for each True; False if it is gone; or what the system has against it. The caller holds the lock.

    Flushed, all at once: when a newer value has replaced one, a power cut must not bring it back to where it was, to be adopted
    after that one (Btrfs does, if only pending/ is flushed). Until it is, its key has no hint, so that no producer adds at
    this place without waiting for the lock. Raises OSError if the flush fails.
    """
    moved = [_move(layout, folder, *place) for place in places]
    flush(layout.folder(folder))
    for (_, number, encoded), there in zip(places, moved, strict=True):
        if there is True:
            write_hint(layout, encoded, number, sequence.boot)
            if not layout.exists("pending", element_name(number, encoded)):
                remove_hint(layout, encoded)  # just taken: as in confirm
    return moved


def _move(layout: Layout, folder: str, name: str, number: int, encoded: str) -> bool | OSError:
    try:
        remove_hint(layout, encoded)
        os.rename(name, element_name(number, encoded), src_dir_fd=layout.folder(folder), dst_dir_fd=layout.folder("pending"))
    except FileNotFoundError:
        return False
    except OSError as error:
        return error
    return True


def move_drop(layout: Layout, sequence: Sequence, folder: str, dropped: str, number: int, encoded: str) -> bool:
    """The same for one; what the system has against it is raised."""
    (moved,) = move_drops(layout, sequence, folder, [(dropped, number, encoded)])
    if isinstance(moved, OSError):
        raise moved
    return moved


def open_for_reading(layout: Layout, folder: str, name: str) -> int:
    """Open an element's file: never through a link, never waiting for a FIFO's writer. Raises OSError."""
    return _open_regular(layout, folder, name)[0]


def _open_regular(layout: Layout, folder: str, name: str) -> tuple[int, int]:
    """The same, and the file's size in bytes."""
    fd = os.open(name, _READ, dir_fd=layout.folder(folder))
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
    except BaseException:
        let_go(fd)
        raise
    return fd, status.st_size


def read_payload(layout: Layout, folder: str, name: str) -> bytes:
    """Return an element's content. Raises OSError."""
    fd, size = _open_regular(layout, folder, name)
    try:
        data = os.read(fd, size + 1)
        if len(data) != size:
            return data + _read_rest(fd)  # one read gives at most 2 GiB; or somebody is writing to it
        return data
    finally:
        let_go(fd)


def _read_rest(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 1 << 24):
        pieces.append(piece)
    return b"".join(pieces)


def _same_file(layout: Layout, folder: str, other: str, name: str) -> bool:
    one = os.lstat(name, dir_fd=layout.folder(folder))
    try:
        two = os.lstat(name, dir_fd=layout.fresh(other))
    except FileNotFoundError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
