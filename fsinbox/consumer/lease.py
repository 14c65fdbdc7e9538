"""The consumer's lease in an inbox that several hosts share: a folder of its own, which its successor takes
away.

A lock does not tell its holder that it was lost, and what a host does over the network it may do late. So a
consumer takes into a folder of its own, inflight/lease-<i>of<n>-<epoch>/: every take is a rename into it,
everything that ends an element a rename or unlink out of it. In it lies `.lease`: who this is, and for how
long the lease holds without a heartbeat. The holder sets that file's times every so often; the server's
clock gives them.

    become the consumer     lock consumer.lock, as on one host. If it was had, whoever was the consumer is
                            gone, or was cut off. If not: is the latest lease still alive? Then the inbox is
                            busy; else its holder counts as dead. mkdir of the next epoch: one of two gets it.
    fence the one before    remove its .lease; rename all it holds into our folder; rmdir; again, if it has
                            taken one meanwhile. From then on no rename or unlink of it can do anything: its
                            folder is gone from the server. Only now put back what it held, and take.
    notice                  a heartbeat, or an end of an element, that finds nothing there: LeaseLost.

So a takeover is safe at any moment; how long a lease holds without a heartbeat only says how long others
wait. No two hosts' clocks are ever compared, and where files do not get their times from one clock, a holder
counts as dead only when its heartbeat was seen not to change.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from time import monotonic, sleep, time_ns

from ..store.errors import InboxBusy, LeaseLost, UnusableInbox
from ..store.folders import CLAIM, PRIVATE_FOLDER, SHARED_FOLDER, close_quietly
from ..store.layout import Layout
from ..store.names import encoded_of, parse_element
from .leases import FILE, GONE, Held, leases, read, server_clock
from .ownership import ConsumerLock, Shard, is_locked, owner_text
from .rival import Rival

_BEATS = 5
"""Heartbeats for each time a lease lasts without one."""


class Lease(ConsumerLock):
    """That this process is the consumer of a shard of a shared inbox."""

    def __init__(self, layout: Layout, shard: Shard, lasts: float, rival: Rival) -> None:
        """Become the consumer, and bring into our folder what those before held. `lasts` in seconds.

        `rival`: who was in the way before. Raises InboxBusy, UnusableInbox, OSError.
        """
        self._lasts = lasts
        self._rival = rival
        self._folder = -1
        self._name = ""
        self._ended = threading.Event()
        self._last_beat = monotonic()
        super().__init__(layout, shard)

    def lock(self) -> bool:
        """Take the locks, or find that whoever has them is dead; then take over."""
        locked = super().lock()
        found = leases(self.layout)
        self._refuse_if_busy(found, locked)
        epoch = 1 + max([held.epoch for held in found if held.shard == self.shard], default=0)
        self._name = f"{CLAIM}{self.shard.index}of{self.shard.count}-{epoch:010d}"
        try:
            os.mkdir(
                self._name,
                SHARED_FOLDER if self.layout.file_mode & 0o060 else PRIVATE_FOLDER,
                dir_fd=self.layout.inflight_root(),
            )
        except FileExistsError:
            raise self.busy() from None  # another one was quicker
        self.layout.enter_claim(self._name)
        self._folder = self.layout.folder("inflight")
        if self.layout.file_mode & 0o060:
            os.fchmod(self._folder, SHARED_FOLDER)  # the umask has taken something
        terms = f"{self._lasts:g} {'locked' if locked else 'not-locked'}\n"
        try:
            fd = os.open(
                FILE,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                self.layout.file_mode,
                dir_fd=self._folder,
            )
        except OSError as error:
            if error.errno not in (errno.EEXIST, *GONE):
                raise
            # GlusterFS now and then lets two make the same folder; or a successor has removed it before we
            # left word.
            self.lost = True  # it is another one's
            raise self.busy() from None
        try:
            if self.layout.file_mode & 0o060:
                os.fchmod(fd, self.layout.file_mode)  # the same: whoever comes next must be able to read it
            os.write(fd, (owner_text() + terms).encode("utf-8", "replace"))
        finally:
            os.close(fd)
        others = [held for held in leases(self.layout) if held.name != self._name]
        for held in others:
            if (
                held.shard == self.shard and held.epoch > epoch
            ):  # our mkdir came late: that one has followed us already
                raise self.busy(held.holder)
        self._fence([held for held in others if self._comes_after(held)])
        self._bring_in_strays()
        self.verify()
        return True

    def write_owner(self) -> None:
        """Begin to give heartbeats. (The word is in .lease; the lock's file may be locked by one that is
        cut off.)"""
        with suppress(OSError):
            os.utime(self._fds[-1])  # status tells by it which division was there last
        threading.Thread(target=self._beat, name="fsinbox-lease", daemon=True).start()

    def _comes_after(self, held: Held) -> bool:
        """Tell whether we are the successor of that one: of our shard, or, for the first shard, of another
        division."""
        return held.shard == self.shard or (self.shard.index == 1 and held.shard.count != self.shard.count)

    def _refuse_if_busy(self, found: list[Held], locked: bool) -> None:
        for held in found:
            if held.shard == self.shard:
                # Its lock is ours now: it has ended, or its host was cut off and has lost it.
                dead = locked and held.needs_lock
            elif held.shard.count != self.shard.count:
                # (That of the consumer of all keys we share by now, if we have ours.)
                free = locked if held.shard.count == 1 else not is_locked(self.layout, held.shard.lock_file)
                dead = free and held.needs_lock
            else:
                continue
            if not dead and self._is_alive(held):
                raise self.busy(held.holder)
            if not self._comes_after(held):
                raise InboxBusy(
                    f"inbox {self.layout.path} was divided into {held.shard.count}, and the consumer of "
                    f"shard {held.shard} has "
                    f"left elements: start the one of shard 1/{self.shard.count} first",
                    held.holder,
                )
        if any(self.shard.has(encoded) for encoded in self._keys_of_others(found)):
            raise InboxBusy(
                f"the consumer of another shard of inbox {self.layout.path} is putting back what is of "
                f"{self.shard}"
            )
        if not found and not locked:
            raise self.busy()

    def _keys_of_others(self, found: list[Held]) -> list[str]:
        """Return the keys, encoded, that consumers of other shards of our division hold."""
        others = {
            f"inflight/{held.name}"
            for held in found
            if held.shard != self.shard and held.shard.count == self.shard.count
        }
        return (
            [encoded_of(name) for folder, name in self.layout.in_flight() if folder in others]
            if others
            else []
        )

    def _is_alive(self, held: Held) -> bool:
        """Tell whether a holder has given a heartbeat within the time its lease lasts without one."""
        lasts = held.lasts or self._lasts
        if self._compares():
            age = (server_clock(self.layout) - held.sign) / 1e9
            return 0 <= age <= lasts and self._rival.lapses(held, lasts, lasts - age) > 0
        until = self._rival.lapses(held, lasts)
        if monotonic() < until and server_clock(self.layout) - held.sign <= lasts * 1e9:
            return True
        while monotonic() < until:
            sleep(min(0.5, lasts / _BEATS))
            try:
                if read(self.layout, held).sign != held.sign:
                    return True
            except FileNotFoundError:
                return False
        return False

    def _compares(self) -> bool:
        return bool(self.layout.sharing and self.layout.sharing.one_clock)

    def _fence(self, before: list[Held]) -> None:
        """Bring all that these hold into our folder, and remove theirs: from then on they can do nothing."""
        root = self.layout.inflight_root()
        for held in before:
            try:
                folder = self.layout.open_claim(held.name)
            except FileNotFoundError:
                continue
            try:
                until = monotonic() + 60
                while True:
                    _empty(self.layout, folder, self._folder)
                    try:
                        os.rmdir(held.name, dir_fd=root)
                        break
                    except FileNotFoundError:
                        break
                    except OSError as error:  # it has just taken one more
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or monotonic() > until:
                            raise
            except OSError as error:
                if error.errno not in GONE:
                    raise
            finally:
                close_quietly(folder)

    def _bring_in_strays(self) -> None:
        """Bring into our folder what lies in inflight/ itself: from before it was shared, or put there by
        hand."""
        for name in self.layout.names_in(self.layout.inflight_root()):
            parsed = parse_element(name)
            if not name.startswith(CLAIM) and (
                self.shard.has(parsed[1]) if parsed else self.shard.index == 1
            ):
                with suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=self.layout.inflight_root(), dst_dir_fd=self._folder)

    # --- heartbeats ---

    def _beat(self) -> None:
        while not self._ended.wait(self._lasts / _BEATS):
            try:
                self._sign()
            except LeaseLost:
                if self.tell:
                    self.tell()
                return
            except OSError:
                continue  # `_last_beat` tells

    def _sign(self) -> None:
        """Give a heartbeat. Raises LeaseLost, OSError."""
        folder = self._folder
        if self.lost or folder < 0:
            raise self._lost()
        try:
            os.utime(FILE, dir_fd=folder, follow_symlinks=False)
            sign = os.stat(FILE, dir_fd=folder, follow_symlinks=False).st_mtime_ns
        except OSError as error:
            if error.errno in GONE and not self._ended.is_set():
                self.lost = True
                raise self._lost() from error
            raise
        self.offset = sign - time_ns()
        self._last_beat = monotonic()

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            "another consumer has taken over "
            f"{'' if self.shard.count == 1 else f'shard {self.shard} of '}inbox {self.layout.path}, "
            f"for this one ({owner_text().strip()}) sent no heartbeat for {self._lasts:g} s, "
            "or its host was cut off: what it had taken is with the other one now, "
            "and was not acknowledged here; start anew if it ends"
        )

    def check(self) -> None:
        """Raise LeaseLost if another consumer has taken over: asked before every take."""
        if self.lost or monotonic() - self._last_beat > self._lasts / 2:
            self.verify()

    def verify(self) -> None:
        """Raise LeaseLost if another consumer has taken over."""
        try:
            self._sign()
        except OSError as error:
            raise UnusableInbox(
                f"cannot renew the lease of inbox {self.layout.path}: {error}: mend that, start anew"
            ) from error

    # --- the end ---

    def close(self) -> None:
        """Stop being the consumer; the folder goes if nothing is in flight. Safe to call twice."""
        folder, self._folder = self._folder, -1
        self._ended.set()
        try:
            if folder >= 0 and not self.lost and not self.layout.names_in(folder):
                with suppress(FileNotFoundError):  # it had not come so far
                    os.unlink(FILE, dir_fd=folder)
                os.rmdir(self._name, dir_fd=self.layout.inflight_root())
        except OSError:
            pass  # whoever comes next does it
        if folder >= 0:
            try:
                self.layout.enter_claim("")
            except (OSError, UnusableInbox):
                pass
        self.unlock()


def _empty(layout: Layout, folder: int, into: int) -> None:
    """Bring all that a consumer holds into another folder."""
    with suppress(FileNotFoundError):
        os.unlink(FILE, dir_fd=folder)  # first of all: it tells its holder
    for name in layout.names_in(folder, hidden=True):
        with suppress(FileNotFoundError):
            if name[0] == ".":  # (.nfs...: a file that is open on another host)
                os.unlink(name, dir_fd=folder)
            else:
                os.rename(name, name, src_dir_fd=folder, dst_dir_fd=into)
