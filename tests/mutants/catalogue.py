"""The mutants: which line of which file, what it becomes, and the check that must turn red.

`old` must occur exactly once in the file: when the code changes, its mutants have to be looked at again. Every place where the
package or the shell producer flushes has to have a mutant that takes the flush away (test_mutants.py sees to it).
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """In `file` replace `old` by `new`; then `check` (words for pytest, or a workload of tests/crash) must fail."""

    name: str
    file: str
    old: str
    new: str
    check: str


def crash(workload: str) -> str:
    """Return the check that goes through all states that a power cut may leave of a workload."""
    return f"workload: {workload}"


PROTOCOL = "fsinbox/protocol.py"
LAYOUT = "fsinbox/layout.py"
CONSUMER = "fsinbox/consumer.py"
TRANSFER = "fsinbox/transfer.py"
ADOPT = "fsinbox/adopt.py"
SEQUENCE = "fsinbox/sequence.py"
SHELL = "scripts/fsinbox-add"

MUTANTS = [
    Mutant(*fields)
    for fields in (
        # --- a producer's flushes
        (
            "payload-not-flushed",
            PROTOCOL,
            "flush(fd)  # before the rename",
            "pass  # before the rename",
            crash("create | new:a=1"),
        ),
        ("flush-does-nothing", PROTOCOL, "        os.fsync(fd)\n", "        pass\n", crash("create | new:a=1")),
        ("name-not-flushed", "fsinbox/inbox.py", "protocol.flush_pending(layout)", "pass", crash("create | new:a=1")),
        ("pending-not-flushed", PROTOCOL, 'flush(layout.folder("pending"))', "pass", crash("create | new:a=1")),
        (
            "batch-not-flushed",
            "fsinbox/batch.py",
            'protocol.flush_all(layout, "tmp", temporaries)',
            "pass",
            crash("create | many:a=1,b=2"),
        ),
        ("batch-names-not-flushed", "fsinbox/batch.py", "protocol.flush_pending(layout)", "pass", crash("create | many:a=1,b=2")),
        (
            "few-not-flushed",
            PROTOCOL,
            "            flush(fd)\n        finally:\n            os.close(fd)\n\n\ndef find_place",
            "            pass\n        finally:\n            os.close(fd)\n\n\ndef find_place",
            crash("create | many:a=1,b=2"),
        ),
        (
            "syncfs-not-called",
            PROTOCOL,
            "if syncfs(layout.folder(folder)):",
            "if False:",
            crash("create | many:a=1,b=2,c=3,d=4,e=5"),
        ),
        (
            "stream-not-flushed",
            TRANSFER,
            "protocol.write_all(fd, piece)\n                if durable:\n                    protocol.flush(fd)\n",
            "protocol.write_all(fd, piece)\n",
            crash("create | stream:a=1"),
        ),
        (
            "copy-not-flushed",
            TRANSFER,
            "_copy(self._fd, fd)\n                if durable:\n                    protocol.flush(fd)\n",
            "_copy(self._fd, fd)\n",
            crash("create | file:a=1"),
        ),
        ("moved-file-not-flushed", TRANSFER, "protocol.flush(self._fd)", "pass", crash("create | move:a=1")),
        ("shell-payload-not-flushed", SHELL, '        sync "$temporary" ||', "        true ||", crash("create | sh:a=1")),
        ("shell-name-not-flushed", SHELL, "    sync pending ||", "    true ||", crash("create | sh:a=1")),
        # --- the consumer's
        (
            "put-back-not-flushed",
            PROTOCOL,
            "    flush_pending(layout)\n    acknowledge(layout, name)\n",
            "    acknowledge(layout, name)\n",
            crash("create add:a=1 take | nack"),
        ),
        (
            "superseded-not-flushed",
            PROTOCOL,
            "flush_pending(layout)  # the newer one must not be lost together with this one",
            "pass",
            "tests/test_durability.py -k superseded",
        ),
        (
            "fold-not-flushed",
            PROTOCOL,
            "flush_pending(layout)  # a power cut must not keep the later",
            "pass  # a power cut must not keep the later",
            crash("create add:a=1 forget add:a=2 forget add:a=3 | take ack"),
        ),
        (
            "deferred-dropped-at-once",
            PROTOCOL,
            '    flush(layout.folder("inflight"))\n    drop_deferred',
            "    drop_deferred",
            "tests/test_durability.py -k deferred",
        ),
        (
            "deferred-drop-not-flushed",
            PROTOCOL,
            '    drop_deferred(layout, deferred)\n    flush(layout.folder("deferred"))\n',
            "    drop_deferred(layout, deferred)\n",
            crash("create add:a=1 take | postpone add:a=2 take ack add:c=3"),
        ),
        (
            "ended-not-flushed",
            PROTOCOL,
            '    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            '    flush(layout.folder("deferred"))\n',
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "ended-deferred-not-flushed",
            PROTOCOL,
            '    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            '    flush(layout.folder("inflight"))\n',
            crash("create add:a=1 take defer | add:a=2 take ack add:c=3"),
        ),
        (
            "ended-forgotten",
            CONSUMER,
            "        self._ended.add(taken.encoded)\n",
            "",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "started-without-flush",
            CONSUMER,
            "        self._flush_ended()\n        self._load_notes()\n",
            "        self._load_notes()\n",
            crash("create add:a=1 take | ack restart add:a=2 take ack add:c=3"),
        ),
        (
            "taken-again-without-flush",
            CONSUMER,
            "            self._flush_ended()\n        if deferred:",
            "            pass\n        if deferred:",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "ended-never-flushed",
            CONSUMER,
            "protocol.flush_ended(self._layout)",
            "pass",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "started-without-flush-of-pending",
            PROTOCOL,
            '    flush_pending(layout)\n    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            '    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            crash("create add:a=1 take | add:a=2 | die take ack add:c=9"),
        ),
        (
            "pending-not-flushed-before-ended",
            PROTOCOL,
            '    flush_pending(layout)\n    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            '    flush(layout.folder("inflight"))\n    flush(layout.folder("deferred"))\n',
            "tests/test_durability.py -k ended",
        ),
        (
            "superseded-deferred-not-flushed",
            PROTOCOL,
            '    flush_pending(layout)\n    flush(layout.folder("inflight"))\n    drop_deferred',
            '    flush(layout.folder("inflight"))\n    drop_deferred',
            "tests/test_durability.py -k deferred",
        ),
        (
            "stranded-pending-not-flushed",
            PROTOCOL,
            '    flush_pending(layout)\n    flush(layout.folder("inflight"))\n    acknowledge',
            '    flush(layout.folder("inflight"))\n    acknowledge',
            "tests/test_durability.py -k put_back_is_dropped",
        ),
        (
            "stranded-not-flushed-before",
            PROTOCOL,
            '    flush(layout.folder("inflight"))\n    acknowledge(layout, name)\n',
            "    acknowledge(layout, name)\n",
            "tests/test_durability.py -k put_back_is_dropped",
        ),
        (
            "stranded-not-flushed-after",
            PROTOCOL,
            '    acknowledge(layout, name)\n    flush(layout.folder("inflight"))\n',
            "    acknowledge(layout, name)\n",
            "tests/test_durability.py -k put_back_is_dropped",
        ),
        (
            "drop-s-move-not-flushed",
            PROTOCOL,
            "    flush(layout.folder(folder))\n",
            "",
            crash("create mv:a=1 | add:a=2 take ack"),
        ),
        (
            "shell-drop-s-move-not-flushed",
            SHELL,
            "        sync drop ||",
            "        true ||",
            crash("create mv:a=1 | sh:a=2 take ack"),
        ),
        (
            "mended-not-flushed",
            "fsinbox/doctor/mending.py",
            "                protocol.flush(found.root)\n",
            "                pass\n",
            "tests/test_durability.py -k doctor",
        ),
        (
            "late-taken-before-what-came-back",
            CONSUMER,
            'if name < back and self._layout.exists("pending", back):',
            "if False:",
            "tests/test_late_producer.py -k comes_back",
        ),
        (
            "late-dropped-at-once",
            PROTOCOL,
            "    flush_ended(layout)\n    try:\n",
            "    try:\n",
            "tests/test_durability.py -k late",
        ),
        # --- drop/
        (
            "drop-not-flushed",
            ADOPT,
            'protocol.flush_all(self._layout, "drop", names)',
            "pass",
            "tests/test_durability.py -k dropped_file",
        ),
        ("overtaken-drop-not-flushed", ADOPT, "        protocol.flush(fd)\n", "", "tests/test_durability.py -k dropped_file"),
        # --- making an inbox
        ("parent-not-flushed", LAYOUT, "        os.fsync(parent)\n", "        pass\n", crash("| mkdir create add:a=1")),
        ("unreadable-parent-not-flushed", LAYOUT, "        os.sync()", "        pass", "tests/test_durability.py -k parent"),
        (
            "folders-not-flushed",
            LAYOUT,
            "        os.fsync(fd)\n        write_format",
            "        write_format",
            crash("| create add:a=1"),
        ),
        ("new-folder-not-flushed", LAYOUT, "        os.fsync(folder)\n", "", "tests/test_durability.py -k new_inbox"),
        (
            "new-file-not-flushed",
            LAYOUT,
            "            os.fchmod(file, SHARED_FILE)\n        os.fsync(file)\n",
            "            os.fchmod(file, SHARED_FILE)\n",
            "tests/test_durability.py -k new_inbox",
        ),
        (
            "format-not-flushed",
            LAYOUT,
            "        os.fsync(file)\n    finally:\n        os.close(file)\n    os.rename",
            "    finally:\n        os.close(file)\n    os.rename",
            crash("| create add:a=1"),
        ),
        ("new-inbox-not-flushed", LAYOUT, "    os.fsync(root)\n", "", "tests/test_durability.py -k new_inbox"),
        # --- orders: what is named before it is there, or gone before what replaces it is
        (
            "format-first",
            LAYOUT,
            "        for name in FOLDERS:\n            make_folder",
            "        write_format(fd, self.path, shared=shared)\n        for name in FOLDERS:\n            make_folder",
            crash("| create"),
        ),
        (
            "put-back-by-rename",
            PROTOCOL,
            'os.link(name, name, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"), '
            "follow_symlinks=False)",
            'os.rename(name, name, src_dir_fd=layout.folder("inflight"), dst_dir_fd=layout.folder("pending"))',
            "tests/interleave -k nothing_is_wrong[two-adds-nack]",
        ),
        (
            "unlink-before-link",
            PROTOCOL,
            "    hint = read_hint(layout, encoded)\n    waits = not (hint",
            "    acknowledge(layout, name)\n    hint = read_hint(layout, encoded)\n    waits = not (hint",
            "tests/test_inbox.py -k rollback_returns",
        ),
        (
            "fold-from-the-top",
            PROTOCOL,
            "for number in numbers[1:]:",
            "for number in reversed(numbers[1:]):",
            crash("create add:a=1 forget add:a=2 forget add:a=3 | take ack"),
        ),
        (
            "hint-kept",
            PROTOCOL,
            "    remove_hint(layout, encoded)  # the one that was read",
            "    pass  # the one that was read",
            "tests/test_inbox.py -k add_many_queues_all",
        ),
        (
            "number-outside-lock",
            PROTOCOL,
            "encoded))\n    with sequence:\n        number, waits = admit",
            "encoded))\n    if True:\n        number, waits = admit",
            "tests/interleave -k nothing_is_wrong[dropped]",
        ),
        (
            "clock-believed",
            SEQUENCE,
            "max(last + 1, now if now < HIGHEST else 0)",
            "now",
            "tests/test_inbox.py -k clock_steps_back",
        ),
        (
            "future-believed",
            PROTOCOL,
            "if parsed is None or parsed[0] > limit:",
            "if parsed is None:",
            "tests/test_inbox.py -k forged_number_in_another_folder -o timeout=10",  # it never ends
        ),
        (
            "boot-not-begun",
            PROTOCOL,
            "return last if sequence.is_known(last, boot) else begin_boot(layout, sequence, last)",
            "return last",
            "tests/test_inbox.py -k sequence_is_damaged",
        ),
        (
            "drop-overlooked",
            "fsinbox/inbox.py",
            "dropped = adopt.finished_drop(layout, key)",
            "dropped = None",
            "tests/test_adopt.py -k after_a_drop",
        ),
        (
            "older-deferred-kept",
            CONSUMER,
            "protocol.supersede_deferred(self._layout, older)",
            "pass",
            "tests/test_inbox.py -k deferred",
        ),
        ("removed-sequence-trusted", SEQUENCE, "if os.fstat(self._fd).st_nlink:", "if True:", "tests/test_inbox.py -k sequence"),
        (
            "second-consumer-let-in",
            "fsinbox/lock.py",
            "return lock_descriptor(fd, blocking=False)",
            "return True",
            "tests/test_inbox.py -k second_consumer",
        ),
        # --- an inbox that several hosts share
        (
            "section-not-flushed",
            SEQUENCE,
            "os.fsync(self._fd)  # else whether",
            "pass  # else whether",
            "tests/test_hosts.py -k server_did_not_take",
        ),
        ("open-mark-ignored", SEQUENCE, 'and words[3] == b"done" else', "else", "tests/test_hosts.py -k cut_off_producer"),
        (
            "old-tag-believed",
            PROTOCOL,
            "and waits and layout.sharing is None:",
            "and waits:",
            "tests/test_hosts.py -k cut_off_producer",
        ),
        (
            "another-holder-overlooked",
            SEQUENCE,
            "if os.pread(self._fd, 64, 0) != self._seen:",
            "if False:",
            "tests/test_hosts.py -k lost_the_lock",
        ),
        (
            "lost-lease-unnoticed",
            CONSUMER,
            "if not (self._keep_done(taken.name, keep) if keep else protocol.acknowledge(self._layout, taken.name)):",
            "if not (self._keep_done(taken.name, keep) if keep else protocol.acknowledge(self._layout, taken.name)) and False:",
            "tests/test_lease.py -k cannot_acknowledge",
        ),
        (
            "folder-of-the-dead-kept",
            "fsinbox/lease.py",
            "                        os.rmdir(held.name, dir_fd=root)\n                        break",
            "                        break",
            "tests/test_lease.py -k cannot_take",
        ),
        # --- links, and what is no file
        (
            "folder-link-followed",
            LAYOUT,
            "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
            "os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
            "tests/test_layout.py -k link_is_not_followed",
        ),
        (
            "format-link-followed",
            LAYOUT,
            'os.open("format", os.O_RDONLY | os.O_NOFOLLOW |',
            'os.open("format", os.O_RDONLY |',
            "tests/test_layout.py -k fifo_or_a_link",
        ),
        (
            "payload-link-followed",
            PROTOCOL,
            "_READ = os.O_RDONLY | os.O_NOFOLLOW |",
            "_READ = os.O_RDONLY |",
            "tests/hostile/test_world.py",
        ),
        (
            "sequence-link-followed",
            SEQUENCE,
            "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW |",
            "os.O_RDWR | os.O_CREAT |",
            "tests/hostile/test_hostile.py -k sequence",
        ),
        (
            "lock-link-followed",
            "fsinbox/lock.py",
            "_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW |",
            "_OPEN = os.O_RDWR | os.O_CREAT |",
            "tests/hostile/test_hostile.py -k consumer.lock",
        ),
        ("anything-adopted", ADOPT, "if kind != stat.S_IFREG:", "if False:", "tests/test_adopt.py -k no_plain_file"),
        ("any-size-adopted", ADOPT, "if status.st_size > self._max_size and", "if False and", "tests/test_adopt.py -k set_aside"),
        (
            "open-file-adopted",
            ADOPT,
            "        if writer:\n            return max",
            "        if False:\n            return max",
            "tests/test_adopt.py -k slow_writer",
        ),
        # --- errors overlooked
        (
            "short-write-overlooked",
            PROTOCOL,
            "        view = view[os.write(fd, view) :]",
            "        os.write(fd, view)\n        return",
            "tests/test_inbox.py -k however_little",
        ),
        (
            "failed-syncfs-overlooked",
            PROTOCOL,
            "if syncfs(layout.folder(folder)):",
            "if syncfs(layout.folder(folder)) and False:",
            "tests/test_protocol.py -k flush_of_many_that_fails",
        ),
        (
            "failed-write-overlooked",
            SHELL,
            '    esac || refused "cannot write to $inbox/tmp"',
            "    esac || true",
            "tests/hostile/test_hostile.py -k 'full and shell'",
        ),
        (
            "failed-move-overlooked",
            SHELL,
            '|| refused "cannot move the value to $inbox/pending"',
            "|| true",
            "tests/faults/test_refusals.py -k 'about_an_error and sh-replacing'",
        ),
        # --- what people do
        (
            "import-not-flushed",
            "fsinbox/archive.py",
            "protocol.flush_pending(self._layout)",
            "pass",
            "tests/test_archive.py -k is_flushed",
        ),
        (
            "wish-not-flushed",
            "fsinbox/control.py",
            '    if durable:\n        flush(layout.folder("control"))\n',
            "",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        (
            "end-of-wish-not-flushed",
            "fsinbox/control.py",
            '        return False\n    flush(layout.folder("control"))\n',
            "        return False\n    pass\n",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        (
            "optional-folder-not-flushed",
            LAYOUT,
            "            os.fsync(self.root)\n",
            "            pass\n",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        (
            "steering-not-flushed-at-its-end",
            "fsinbox/steering.py",
            "        try:\n            self.flush()\n",
            "        try:\n            pass\n",
            "tests/test_steering.py -k only_then_the_reason_goes",
        ),
        (
            "steering-not-flushed",
            "fsinbox/steering.py",
            "protocol.flush(self.layout.folder(folder))",
            "pass",
            "tests/test_steering.py -k only_then_the_reason_goes",
        ),
        (
            "many-not-flushed-now-and-then",
            "fsinbox/steering.py",
            "            self.flush()\n\n    @contextmanager",
            "            pass\n\n    @contextmanager",
            "tests/test_steering.py -k many_are_flushed",
        ),
        (
            "retry-overwrites",
            PROTOCOL,
            "    noreplace = 1\n",
            "    noreplace = 0\n",
            "tests/test_steering.py -k late_producer",
        ),
        (
            "retry-does-not-look-for-a-newer-one",
            PROTOCOL,
            "            if parsed and parsed[1] == encoded and parsed[0] > number:\n",
            "            if False:\n",
            "tests/test_steering.py -k followed_by_an_older_one",
        ),
        (
            "retry-without-the-lock",
            PROTOCOL,
            "and (hint[1] == sequence.boot or layout.exists",
            "and (layout.exists",
            "tests/test_steering.py -k has_its_place",
        ),
        (
            "what-was-requeued-is-not-late",
            CONSUMER,
            "if older[20:] != name and self._looks_regular(older[20:]):",
            "if False:",
            "tests/test_steering.py -k superseded_before_it_is_seen",
        ),
        (
            "hold-is-not-heeded",
            CONSUMER,
            "if self._wishes.held and self._pass_over(name):",
            "if False:",
            "tests/test_steering.py -k on_hold_is_left_alone",
        ),
    )
]
