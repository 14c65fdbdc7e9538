"""Everything that can be wrong with an inbox, in plain words: what it means, what becomes of it, and what a
repair does."""

from __future__ import annotations

from typing import NamedTuple


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
        "the folders are an inbox's, but `format` is not there: nothing can open it",
        "",
        "writes it, once all folders are there",
        "written",
    ),
    "format-damaged": Kind(
        "repair",
        "it does not say `fsinbox 2 local`, though the folders are an inbox's: nothing can open it",
        "",
        "writes it anew",
        "written anew",
    ),
    "format-scope": Kind(
        "person",
        "the inbox was made on a local file system, and now lies on one that other hosts change",
        "",
        "stop all that use it, and make the line in `format` say `network`",
    ),
    "folder-missing": Kind(
        "repair",
        "the folder is not there: adding or taking fails",
        "",
        "makes it, empty; then start anew what has the inbox open, for it holds the one that was removed",
        "made; start anew what has the inbox open",
    ),
    "not-a-folder": Kind(
        "person",
        "this should be a folder, and is not: it is never followed nor touched, and the inbox cannot be used",
        "",
        "put the folder itself there, or take this away and run --repair",
    ),
    "folder-closed": Kind(
        "person", "this user cannot open it", "", "run the doctor as the user whose inbox it is"
    ),
    "other-device": Kind(
        "person",
        "it is on another file system than the inbox: elements cannot be renamed in or out",
        "",
        "unmount it, or make the whole inbox lie on one file system",
    ),
    "file-missing": Kind("note", "it is not there", "it is made anew when it is needed", "makes it", "made"),
    "not-a-file": Kind(
        "repair",
        "this should be a plain file, and is not: nothing can be added, or no consumer start",
        "",
        f"{_ASIDE}, and makes the file",
        f"{_WAS_ASIDE}; made anew",
    ),
    "mode": Kind(
        "repair",
        "its mode is not as in the rest of the inbox: who should be let in may be kept out",
        "",
        "sets the mode, if the owner runs it",
        "mode set",
    ),
    "open": Kind(
        "note",
        "other users may enter it",
        "",
        "if they should not: `chmod o-rwx` it (drop/ may be meant to be open to all)",
    ),
    "owner": Kind(
        "person",
        "it belongs to another user than the inbox: adding or taking may fail",
        "",
        "give it to the owner of the inbox (chown)",
    ),
    "foreign-root": Kind("note", "it is not part of the inbox, and left alone"),
    "file-linked": Kind(
        "person",
        "it has another name (a hard link, as `cp -al` makes them): what is written to it would be written "
        "there, so "
        "nothing can be added, or no consumer start",
        "",
        "remove the other name",
    ),
    # The index
    "index-damaged": Kind(
        "note",
        "its header is not well-formed, or the file is shorter than that says",
        "the next add makes it anew from what lies in the folders",
        "does that now",
        "made anew",
    ),
    "index-future": Kind(
        "person",
        "the last number given out is over a day ahead of the clock: order is kept, but ages are wrong, and "
        "--max-settle does "
        "not end a wait. Either the clock is wrong now, or it was when an element was added",
        "",
        "set the clock; or stop all that use the inbox, and remove the file",
    ),
    "index-behind": Kind(
        "repair",
        "its number is above the last one given out: a newer value for its key could be given a lower one, "
        "and lose to it",
        "",
        "makes the index anew: the highest number in use is the last one then",
        "the index was made anew: its last number is the highest in use",
    ),
    "index-low": Kind(
        "repair",
        "the index names this place, and its key has a higher one: the next value for it would lose to that",
        "",
        "makes the index anew",
        "the index was made anew",
    ),
    "number-forged": Kind(
        "note",
        "nobody gave its number out: it was put here by hand",
        "the consumer queues it as if it came now",
        "does that now, unless a consumer runs",
        "queued as if it came now",
    ),
    "number-absurd": Kind(
        "person",
        "its number is over a day ahead of the clock, and nobody gave it out: a newer value for its key "
        "could lose to it",
        "",
        "if it is wanted, `mv` it to drop/ under its plain key",
    ),
    "admission-held": Kind(
        "person",
        "somebody has held the lock for over a second: all adds wait for it, and all that goes back to "
        "pending/; "
        "taking and acknowledging go on",
        "it goes on when that process does, or dies",
        "continue that process if it is stopped (`kill -CONT`), else end it: nothing that was added is lost",
    ),
    # Elements
    "foreign-name": Kind(
        "note",
        "its name is not that of an element",
        "the consumer moves it to failed/ when it meets it, or next starts",
        f"{_ASIDE}, unless a consumer runs",
        _WAS_ASIDE,
    ),
    "not-regular": Kind(
        "note",
        "it is not a regular file",
        "the consumer moves it to failed/ when it meets it, or next starts",
        f"{_ASIDE}, unless a consumer runs",
        _WAS_ASIDE,
    ),
    "unreadable": Kind(
        "person",
        "it belongs to another user than the inbox, who cannot read it: its handler will fail",
        "",
        "give it to the owner of the inbox (chown)",
    ),
    "several-places": Kind(
        "note",
        "its key waits in several places",
        "the consumer coalesces them: the newest value, at the oldest place",
        "does that now, unless a consumer runs",
        "coalesced: the newest value is at the oldest place",
    ),
    "orphan": Kind(
        "note",
        "a consumer that is gone had taken it",
        "the next consumer requeues it, and counts the attempt; it is dropped if a newer value waits",
        "does that now",
        "requeued, or dropped since a newer value waits",
    ),
    "deferred-absurd": Kind(
        "note",
        "it is due more than 7 days from now, so the clock has been set back since",
        "the next consumer waits no longer than its back-off was, or takes it at once if that was more than "
        "7 days",
    ),
    "deferred-superseded": Kind(
        "note",
        "a newer value for its key waits",
        "it is dropped when that one is taken",
        "drops it, unless a consumer runs",
        "dropped: a newer value waits",
    ),
    "no-reason": Kind("note", "no reason is kept for it: the disk was full, or it was moved here by hand"),
    "reason-alone": Kind(
        "note",
        "the element that it tells of is no longer in failed/",
        "",
        "removes it, unless a consumer runs",
        "removed",
    ),
    "foreign-failed": Kind("note", "it is neither an element that failed nor a reason, and left alone"),
    # The rest
    "note-alone": Kind(
        "note",
        "it counts the attempts at an element that is gone",
        "the next consumer removes it",
        "removes it, unless a consumer runs",
        "removed",
    ),
    "note-foreign": Kind(
        "note", "it is no note of the consumer's", "", f"{_ASIDE}, unless a consumer runs", _WAS_ASIDE
    ),
    "litter": Kind(
        "note",
        "its writer has not touched it for a day, and is dead",
        "the next consumer removes it",
        "removes it",
        "removed",
    ),
    "litter-odd": Kind("repair", "it is not a regular file, and nothing sweeps it", "", _ASIDE, _WAS_ASIDE),
    "leftover": Kind("note", "a process that was killed has left it behind", "", "removes it", "removed"),
    "leftover-folder": Kind(
        "note", "a doctor that was killed has left it behind", "", "removes it", "removed"
    ),
    "drop-draft": Kind("note", "it is somebody's draft, by its name: it is left alone until it is renamed"),
    "drop-open": Kind(
        "note", "some process has it open for writing", "the consumer ingests it when that is closed"
    ),
    "drop-bad": Kind(
        "note",
        "it cannot become an element",
        "the consumer moves it to failed/, with the reason beside it",
        "does that now, unless a consumer runs",
        _WAS_ASIDE,
    ),
    "drop-waits": Kind("note", "it has not been ingested", "the consumer ingests it"),
    "holder-gone": Kind(
        "note",
        "the consumer's lock is held, but the process that took it is not to be seen: a child of it holds "
        "on, or it runs in "
        "another container",
    ),
}
