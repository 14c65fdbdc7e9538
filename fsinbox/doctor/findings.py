"""Everything that can be wrong with an inbox: what it means, what becomes of it, and what a repair does.

A *sign* is one place where something may be wrong. A *finding* is all signs of one kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..store.ignoring import OF_FILE
from ..store.subfolders import MOST


class Sign(NamedTuple):
    """Something that may be wrong. `where` is a path below the inbox, `seen` what was seen there."""

    kind: str
    where: str
    seen: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, and where."""

    kind: str
    signs: tuple[Sign, ...]

    @property
    def level(self) -> str:
        """How bad it is: see Kind."""
        return KINDS[self.kind].level

    @property
    def means(self) -> str:
        """What it is."""
        return KINDS[self.kind].means

    @property
    def itself(self) -> str:
        """What fsinbox does about it without being asked, or ""."""
        return KINDS[self.kind].itself

    @property
    def repair(self) -> str:
        """What a repair does, or a person should do; or ""."""
        return KINDS[self.kind].repair

    @property
    def mends(self) -> bool:
        """Whether a repair mends it."""
        return bool(KINDS[self.kind].done)

    @property
    def places(self) -> str:
        """Where it is, for people: the first three places, and how many more."""
        shown = [sign.where if sign.where.isprintable() else repr(sign.where) for sign in self.signs[:3]]
        more = f" and {len(self.signs) - 3} more" if len(self.signs) > 3 else ""
        return ", ".join(shown) + more


def group(signs: set[Sign]) -> tuple[Finding, ...]:
    """Sort signs into findings: what needs a person first, then what needs a repair."""
    kinds = sorted({sign.kind for sign in signs}, key=lambda kind: (_LEVELS.index(KINDS[kind].level), kind))
    return tuple(Finding(kind, tuple(sorted(sign for sign in signs if sign.kind == kind))) for kind in kinds)


_LEVELS = ("person", "repair", "note")


class Kind(NamedTuple):
    """One thing that can be wrong.

    level    "note": nothing needs doing; "repair": --repair mends it; "person": only a person can
    means    what it is, and what follows from it
    itself   what fsinbox does about it without being asked, or ""
    repair   what --repair does, or what a person should do; or ""
    done     what a repair says that it did
    """

    level: str
    means: str
    itself: str = ""
    repair: str = ""
    done: str = ""


_ASIDE = "moves it to failed/, with the reason beside it"
_WAS_ASIDE = "moved to failed/, with the reason beside it"

KINDS: dict[str, Kind] = {
    # The frame
    "format-missing": Kind(
        "repair",
        "the folders are those of an inbox, but `format` is missing: no process can open it",
        "",
        "writes it, once all folders are there",
        "written",
    ),
    "format-damaged": Kind(
        "repair",
        "it does not say `fsinbox 2 local`, though the folders are those of an inbox: no process can open it",
        "",
        "rewrites it",
        "rewritten",
    ),
    "format-scope": Kind(
        "person",
        "the inbox is for one host, and lies on a file system that other hosts use too: it is refused here",
        "",
        "use it on the host that has it on its disk; or stop every process that uses it, and change `local` "
        "to `network` in `format`; or, if only this host uses it, `fsinbox init --scope local --force`",
    ),
    "forced": Kind(
        "note",
        "the inbox lies on a file system that other hosts use too, and was forced to be for one host alone",
    ),
    "machine-other": Kind(
        "person",
        "the inbox is for one host, and for another machine than this: it is refused here",
        "",
        "use it there; or, once no process there uses it, `fsinbox init --scope local --force` here",
    ),
    "machine-untold": Kind(
        "note",
        "the machine that it is for has no fingerprint (/etc/machine-id): another one would not be refused",
        "",
        "make one (systemd-machine-id-setup), then `fsinbox init --scope local --force`",
    ),
    "mount-untold": Kind(
        "note",
        "it cannot be told whether other hosts use this file system: if they do, two consumers may run one "
        "element at once",
        "",
        "use it from one host only; or make an inbox with `--scope network`",
    ),
    "mount-soft": Kind(
        "person",
        "this NFS is mounted so that this host gives up on what the server may still do later: it is refused",
        "",
        "mount it hard (the default)",
    ),
    "folder-missing": Kind(
        "repair",
        "the folder is missing: adds or takes fail",
        "",
        "makes an empty one; then restart every process that has the inbox open: it uses the removed one",
        "made; restart every process that has the inbox open",
    ),
    "not-a-folder": Kind(
        "person",
        "this should be a folder, and is not: it is never followed nor touched, and the inbox cannot be used",
        "",
        "put the folder itself there, or remove this and run --repair",
    ),
    "folder-closed": Kind(
        "person", "this user cannot open it", "", "run the doctor as the owner of the inbox"
    ),
    "other-device": Kind(
        "person",
        "it is on another file system than the inbox: elements cannot be moved in or out",
        "",
        "unmount it, or move the whole inbox to one file system",
    ),
    "file-missing": Kind(
        "note", "it is missing", "the next process that needs it makes it", "makes it", "made"
    ),
    "not-a-file": Kind(
        "repair",
        "this should be a regular file, and is not: adds fail, or no consumer can start",
        "",
        f"{_ASIDE}, and makes the file",
        f"{_WAS_ASIDE}; a new one was made",
    ),
    "mode": Kind(
        "repair",
        "its mode differs from the rest of the inbox: users who should have access may have none",
        "",
        "sets the mode, if the owner runs it",
        "mode set",
    ),
    "open": Kind(
        "note",
        "other users may enter it",
        "",
        "if they should not: `chmod o-rwx` it (drop/ may be open to all on purpose)",
    ),
    "owner": Kind(
        "person",
        "it belongs to another user than the inbox: adds or takes may fail",
        "",
        "give it to the owner of the inbox (chown)",
    ),
    "foreign-root": Kind("note", "it is not part of the inbox, and ignored"),
    "file-linked": Kind(
        "person",
        "it has another name (a hard link, as `cp -al` makes them), and would be changed there, too: adds "
        "fail, or no consumer can start",
        "",
        "remove the other name",
    ),
    # The index
    "index-damaged": Kind(
        "note",
        "its header is malformed, or the file is shorter than the header says",
        "the next add rebuilds it from the folders",
        "does that now",
        "rebuilt",
    ),
    "index-future": Kind(
        "person",
        "the last number given out is more than a day ahead of the clock: order is kept, but ages are wrong, "
        "and --max-settle ends no wait. Either the clock is wrong now, or it was when an element was added",
        "",
        "set the clock; or stop every process that uses the inbox, and remove the file",
    ),
    "index-behind": Kind(
        "repair",
        "its number is above the last one given out: a newer value of its key could get a lower number, and "
        "lose to it",
        "",
        "rebuilds the index: its last number is then the highest in use",
        "the index was rebuilt: its last number is the highest in use",
    ),
    "index-low": Kind(
        "repair",
        "the index names this place, but its key has a higher one: the next value would lose to that",
        "",
        "rebuilds the index",
        "the index was rebuilt",
    ),
    "number-forged": Kind(
        "note",
        "its number was never given out: it was put here by hand",
        "the consumer queues it as if it had arrived now",
        "does that now, unless a consumer is running",
        "queued as if it had arrived now",
    ),
    "number-absurd": Kind(
        "person",
        "its number is more than a day ahead of the clock, and was never given out: a newer value of its key "
        "could lose to it",
        "",
        "to keep it, `mv` it to drop/ under its plain key; else remove it",
    ),
    "admission-held": Kind(
        "person",
        "a process has held the admission lock for more than a second: all adds and requeues wait for it; "
        "takes and acknowledgements do not",
        "ends when that process continues, or dies",
        "continue that process if it is stopped (`kill -CONT`), else end it: nothing that was added is lost",
    ),
    # Elements
    "foreign-name": Kind(
        "note",
        "its name is not the name of an element",
        "the consumer moves it to failed/ when it comes across it, or at its next start",
        f"{_ASIDE}, unless a consumer is running",
        _WAS_ASIDE,
    ),
    "not-regular": Kind(
        "note",
        "it is not a regular file",
        "the consumer moves it to failed/ when it comes across it, or at its next start",
        f"{_ASIDE}, unless a consumer is running",
        _WAS_ASIDE,
    ),
    "unreadable": Kind(
        "person",
        "it belongs to another user, and the owner of the inbox cannot read it: its handler will fail",
        "",
        "give it to the owner of the inbox (chown)",
    ),
    "several-places": Kind(
        "note",
        "its key is waiting in several places",
        "the consumer coalesces them: the newest value at the oldest place",
        "does that now, unless a consumer is running",
        "coalesced: the newest value is at the oldest place",
    ),
    "orphan": Kind(
        "note",
        "it was in flight when its consumer ended",
        "the next consumer requeues it, and counts the attempt; or drops it if a newer value is waiting",
        "does that now",
        "requeued, or dropped because a newer value is waiting",
    ),
    "deferred-absurd": Kind(
        "note",
        "it is due more than 7 days from now: the clock has been set back since",
        "the next consumer waits no longer than its back-off was; or takes it at once if that was more than "
        "7 days",
    ),
    "deferred-superseded": Kind(
        "note",
        "a newer value of its key is waiting",
        "it is dropped when that value is taken",
        "drops it, unless a consumer is running",
        "dropped: a newer value is waiting",
    ),
    "no-reason": Kind("note", "no reason is kept for it: the disk was full, or it was put here by hand"),
    "reason-alone": Kind(
        "note",
        "the element that it belongs to is no longer in failed/",
        "",
        "removes it, unless a consumer is running",
        "removed",
    ),
    "foreign-failed": Kind("note", "it is neither a failed element nor a reason, and ignored"),
    "foreign-done": Kind("note", "it is not the name of an element, and ignored"),
    "ended-odd": Kind(
        "note",
        "it is not a regular file (a directory or a link, perhaps): retry, replay and export leave it out",
        "",
        "look at it, then `fsinbox discard` it; a directory with something in it is left: remove it yourself",
    ),
    # The rest
    "note-alone": Kind(
        "note",
        "it counts the attempts of an element that is gone",
        "the next consumer removes it",
        "removes it, unless a consumer is running",
        "removed",
    ),
    "note-foreign": Kind(
        "note", "it is not a note of the consumer", "", f"{_ASIDE}, unless a consumer is running", _WAS_ASIDE
    ),
    "litter": Kind(
        "note",
        "its writer has not touched it for a day, so it is dead",
        "the next consumer removes it",
        "removes it",
        "removed",
    ),
    "litter-odd": Kind(
        "repair", "it is not a regular file, and never removed by itself", "", _ASIDE, _WAS_ASIDE
    ),
    "leftover": Kind("note", "a process that was killed left it behind", "", "removes it", "removed"),
    "leftover-folder": Kind("note", "a doctor that was killed left it behind", "", "removes it", "removed"),
    "drop-draft": Kind(
        "note",
        "its name is not taken for a key (a partial upload, or litter): it is ignored until it is renamed",
        "",
        f"if it should be a value, write `!` and its name into {OF_FILE}, or rename it",
    ),
    "ignore-file": Kind(
        "person",
        "the file, or a line of it, is not in force: names that it should take out of the way are ingested",
        "",
        "mend it: a regular file of the owner of the inbox, to which nobody else may write; a pattern of a "
        ".gitignore a line",
    ),
    "drop-open": Kind(
        "note", "a process has it open for writing", "the consumer ingests it once it is closed"
    ),
    "drop-bad": Kind(
        "note",
        "it cannot become an element",
        "the consumer moves it to failed/, with the reason beside it",
        "does that now, unless a consumer is running",
        _WAS_ASIDE,
    ),
    "drop-unread": Kind(
        "person",
        "the consumer cannot look into it, so what is in it is not ingested",
        "",
        "let the consumer's user enter it and write in it, on the inbox's own file system",
    ),
    "drop-folders": Kind(
        "person",
        f"it has more than {MOST} subfolders: the consumer does not look into all of them",
        "",
        "`find drop -mindepth 1 -type d -empty -delete` in the inbox removes the empty ones",
    ),
    "drop-waits": Kind("note", "it has not been ingested", "the consumer ingests it"),
    "holder-gone": Kind(
        "note",
        "the consumer's lock is held, but the process that took it cannot be seen: a child of it still holds "
        "the lock, or it runs in another container",
    ),
}
