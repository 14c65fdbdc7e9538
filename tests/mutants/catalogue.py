"""The mutants: which line of which file, what it becomes, and the check that must turn red.

`old` must occur exactly once in the file: when the code changes, its mutants have to be looked at again.
Every place where the package or the shell producer flushes has to have a mutant that takes the flush away
(test_mutants.py sees to it).
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """In `file` replace `old` by `new`; then `check` (words for pytest, or a workload of tests/crash) must
    fail."""

    name: str
    file: str
    old: str
    new: str
    check: str


def crash(workload: str) -> str:
    """Return the check that goes through all states that a power cut may leave of a workload."""
    return f"workload: {workload}"


ADDING = "fsinbox/store/adding.py"
ADOPT = "fsinbox/consumer/ingest.py"
ATTEMPTS = "fsinbox/consumer/attempts.py"
COALESCING = "fsinbox/consumer/coalescing.py"
CONSUMER = "fsinbox/consumer/consumer.py"
COPYING = "fsinbox/consumer/copying.py"
HELD = "fsinbox/store/held.py"
SUBFOLDERS = "fsinbox/store/subfolders.py"
HANDLE = "fsinbox/store/handle.py"
LISTING = "fsinbox/consumer/listing.py"
RECOVERY = "fsinbox/consumer/recovery.py"
RETURNING = "fsinbox/consumer/returning.py"
SESSION = "fsinbox/consumer/session.py"
TAKING = "fsinbox/consumer/taking.py"
BOUNDS = "fsinbox/store/bounds.py"
CONTROL = "fsinbox/store/control.py"
DROPPED = "fsinbox/store/drops.py"
EXCHANGING = "fsinbox/store/exchanging.py"
FILES = "fsinbox/store/files.py"
IGNORING = "fsinbox/store/ignoring.py"
INBOX = "fsinbox/inbox.py"
INDEX = "fsinbox/store/index.py"
TABLE = "fsinbox/store/table.py"
LAYOUT = "fsinbox/store/layout.py"
SECTION = "fsinbox/store/section.py"
LINES = "fsinbox/store/lines.py"
FOLDERS = "fsinbox/store/folders.py"
CREATING = "fsinbox/store/creating.py"
PROTOCOL = "fsinbox/store/transitions.py"
SECTIONS = "fsinbox/store/network/sections.py"
STEERING = "fsinbox/operate/steering.py"
TREE = "fsinbox/worker/tree"
TRANSFER = "fsinbox/store/transfer.py"
HOST = "fsinbox/store/host.py"
MOUNTS = "fsinbox/store/mounts.py"
REPLACING = "fsinbox/store/replacing.py"
COMMANDS = "fsinbox/worker/commands.py"
TRUST = "fsinbox/consumer/trust.py"
SHELL = "scripts/fsinbox-add"

MUTANTS = [
    Mutant(*fields)
    for fields in (
        # --- a producer's flushes
        (
            "payload-not-flushed",
            FILES,
            "flush(fd)  # before the rename",
            "pass  # before the rename",
            crash("create | new:a=1"),
        ),
        ("flush-does-nothing", FILES, "        os.fsync(fd)\n", "        pass\n", crash("create | new:a=1")),
        (
            "drive-not-flushed",
            FILES,
            "        fcntl.fcntl(fd, full)\n",
            "        pass\n",
            "tests/test_protocol.py -k a_drive_that",
        ),
        (
            "added-not-flushed",
            ADDING,
            "            flush_published(self._layout, self._published)\n\n    def _outcome",
            "            pass\n\n    def _outcome",
            crash("create | new:a=1"),
        ),
        (
            "name-not-flushed",
            PROTOCOL,
            "    flush_pending(layout)\n    if published",
            "    if published",
            crash("create | new:a=1"),
        ),
        (
            "replaced-drop-not-flushed",
            PROTOCOL,
            "        flush_folders(layout, published.moved_drops)\n",
            "        pass\n",
            crash("create mv:a=1 | add:a=2 take ack"),
        ),
        (
            "pending-not-flushed",
            FILES,
            '    flush_folder(layout, "pending")\n',
            "    pass\n",
            crash("create | new:a=1"),
        ),
        (
            "folder-not-flushed",
            FILES,
            "    flush_shared(layout, layout.folder(name))\n",
            "    pass\n",
            crash("create | new:a=1"),
        ),
        (
            "names-not-flushed",
            FILES,
            "        commit(fd)\n    else:\n        flush(fd)\n",
            "        commit(fd)\n",
            crash("create | new:a=1"),
        ),
        (
            "many-not-flushed",
            ADDING,
            '            flush_all(self._layout, "tmp", self._drafts)\n',
            "            pass\n",
            crash("create | many:a=1,b=2"),
        ),
        (
            "few-not-flushed",
            FILES,
            "            flush(fd)\n        finally",
            "            pass\n        finally",
            crash("create | many:a=1,b=2"),
        ),
        (
            "syncfs-not-called",
            FILES,
            "if syncfs(layout.folder(folder)):",
            "if False:",
            "tests/test_durability.py -k a_batch_flushes",
        ),
        (
            "stream-not-flushed",
            TRANSFER,
            "write_all(fd, piece)\n            _finish(fd, durable=durable,",
            "write_all(fd, piece)\n            _finish(fd, durable=False,",
            crash("create | stream:a=1"),
        ),
        (
            "copy-not-flushed",
            TRANSFER,
            "_copy(self._fd, fd)\n            _finish(fd, durable=durable,",
            "_copy(self._fd, fd)\n            _finish(fd, durable=False,",
            crash("create | file:a=1"),
        ),
        (
            "moved-file-not-flushed",
            TRANSFER,
            "_finish(self._fd, durable=durable,",
            "_finish(self._fd, durable=False,",
            crash("create | move:a=1"),
        ),
        (
            "streams-and-files-not-flushed",
            TRANSFER,
            "    if durable:\n        flush(fd)\n",
            "",
            crash("create | stream:a=1"),
        ),
        # --- bounds
        (
            "bound-not-flushed",
            BOUNDS,
            "        flush(fd)\n",
            "",
            "tests/test_bounds.py -k flushed",
        ),
        (
            "name-of-the-bound-not-flushed",
            BOUNDS,
            "    flush_shared(layout, layout.root)\n",
            "",
            "tests/test_bounds.py -k flushed",
        ),
        (
            "bound-does-not-count",
            BOUNDS,
            'os.pwrite(fd, b"%010d" % min(counted + 1, 10**10 - 1), 28)',
            "pass",
            "tests/test_bounds.py -k no_more_than_the_bound",
        ),
        (
            "count-of-another-boot-believed",
            BOUNDS,
            "if tag != ours or (counted >= most and _is_old(counted, when)):",
            "if counted > most:",
            crash("create bound add:a=1 add:b=2 take | ack take ack"),
        ),
        # --- later, and only if none waits
        (
            "delay-marked-after-the-flush",
            FILES,
            "        if not_before:\n            mark_not_before(fd, not_before)\n        if durable:\n            "
            "flush(fd)  # before",
            "        if durable:\n            flush(fd)\n        if not_before:\n            "
            "mark_not_before(fd, not_before)  # before",
            "tests/test_later.py -k flushed",
        ),
        (
            "put-off-counts-as-taken",
            CONSUMER,
            "self.defer(taken, taken.too_soon / 1e9, counted=False)",
            "self.defer(taken, taken.too_soon / 1e9, counted=True)",
            "tests/test_later.py -k another_users_file_is_counted",
        ),
        (
            "dying-while-it-is-put-off-counts",
            RECOVERY,
            "if not_before(status) > self._ownership.now():",
            "if False:",
            "tests/test_later.py -k another_users_file_is_counted",
        ),
        (
            "keep-does-not-look-at-what-is-deferred",
            HELD,
            "        return encoded in self._deferred or any(",
            "        return any(",
            "tests/test_later.py -k kept",
        ),
        (
            "keep-does-not-look-at-what-is-being-put-off",
            HELD,
            "            for folder, name in self._layout.in_flight()\n",
            "            for folder, name in ()\n",
            "tests/test_later.py -k on_its_way",
        ),
        (
            "what-is-handed-out-keeps-its-mark",
            TAKING,
            "if not too_soon:",
            "if False:",
            "tests/test_later.py -k handed_out_is_not_kept",
        ),
        (
            "what-is-kept-uses-up-a-number",
            PROTOCOL,
            "if held and dropped is None and held.has(encoded):",
            "if False:",
            "tests/test_later.py -k uses_up_no_number",
        ),
        (
            "clock-set-forward-is-not-noticed",
            CONSUMER,
            "if self.recovery.notice_clock():",
            "if False:",
            "tests/test_later.py -k set_forward",
        ),
        (
            "bit-not-looked-at-once-it-is-set",
            FILES,
            "if not_before(os.fstat(fd)) >= moment:",
            "if True:",
            "tests/test_later.py -k file_system",
        ),
        (
            "btrfs-not-committed",
            FILES,
            "        commit(fd)\n    else:",
            "        pass\n    else:",
            "tests/test_btrfs_names.py -k on_btrfs_names",
        ),
        (
            "commit-does-nothing",
            FILES,
            "    fcntl.ioctl(fd, _BTRFS_SYNC)\n",
            "    pass\n",
            "tests/test_btrfs_names.py -k on_btrfs_names",
        ),
        (
            "btrfs-not-seen",
            FILES,
            "layout.commits = is_btrfs(fd)",
            "layout.commits = False",
            "tests/test_btrfs_names.py -k on_btrfs_names",
        ),
        (
            "btrfs-error-is-btrfs",
            FILES,
            "        return False  # (ENOTTY",
            "        return True  # (ENOTTY",
            "tests/test_btrfs_names.py -k what_is_not",
        ),
        (
            "drops-not-committed-on-btrfs",
            FILES,
            "        commit(layout.folder(folder))  # as in",
            "        pass  # as in",
            "tests/test_btrfs_names.py -k on_btrfs_a",
        ),
        # --- who may do what
        (
            "replacement-not-flushed",
            REPLACING,
            "            os.fsync(self._file.fileno())\n",
            "            pass\n",
            "tests/test_replacing.py -k flushed",
        ),
        (
            "replacement-left-in-a-buffer",
            REPLACING,
            "        self._file.flush()\n",
            "",
            "tests/test_replacing.py -k flushed",
        ),
        (
            "draft-through-what-is-there",
            REPLACING,
            "os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
            "os.O_CREAT",
            "tests/test_replacing.py -k draft_s_name",
        ),
        (
            "draft-that-can-be-foreseen",
            REPLACING,
            "os.urandom(8).hex()",
            "bytes(8).hex()",
            "tests/test_replacing.py -k no_two_drafts",
        ),
        (
            "one-host-anywhere",
            HOST,
            'if where == "remote" and how != "forced":',
            "if False:",
            "tests/test_one_host.py -k refused_where_others",
        ),
        (
            "forced-for-every-machine",
            HOST,
            'if owner not in ("", "-", machine() if owner else ""):',
            "if False:",
            "tests/test_one_host.py -k refused_on_another_machine",
        ),
        (
            "soft-accepted",
            MOUNTS,
            "    if soft:\n",
            "    if False:\n",
            "tests/test_one_host.py -k mounted_soft",
        ),
        (
            "descriptor-not-inherited",
            COMMANDS,
            "            pass_fds=keep,\n",
            "",
            "tests/test_worker.py -k descriptor",
        ),
        (
            "descriptor-is-a-path",
            COMMANDS,
            'f"/dev/fd/{payload}" if match[1] else path',
            "path",
            "tests/test_worker.py -k descriptor",
        ),
        (
            "root-is-not-warned",
            TRUST,
            "others = writers(layout) if os.geteuid() == 0 else",
            "others = writers(layout, ()) if os.geteuid() == 0 else",
            "tests/test_security.py -k root_is_warned",
        ),
        (
            "shell-draft-by-its-name",
            SHELL,
            'status=none "$@" <&7 >&8 ||',
            'status=none of="$temporary" "$@" <&7 ||',
            "tests/test_security.py -k shell_producer_s_draft",
        ),
        (
            "shell-index-through-a-link",
            SHELL,
            'if [ -w index ] && [ "$2 $5" != "${27:-} ${30:-}" ]; then',
            "if false; then",
            "tests/test_security.py -k shell_producer_s_index",
        ),
        # --- the shell producer's
        (
            "shell-payload-not-flushed",
            SHELL,
            "[ $durable = no ] || sync /proc/self/fd/8 ||",
            "true ||",
            "tests/test_shell_producer.py -k what_is_named",
        ),
        (
            "shell-stream-for-later-not-flushed",
            SHELL,
            '[ "$delay" = 0 ] || sync /proc/self/fd/8 ||',
            "true ||",
            "tests/test_shell_producer.py -k what_is_named",
        ),
        ("shell-stream-not-flushed", SHELL, "set -- conv=fsync", "true", crash("create | sh:a=1")),
        (
            "shell-flush-does-nothing",
            SHELL,
            '        sync "$1"\n',
            "        true\n",
            crash("create | sh:a=1"),
        ),
        (
            "shell-folder-not-flushed",
            SHELL,
            '[ $durable = no ] || flush_shared "$1" ||',
            "true ||",
            crash("create | sh:a=1"),
        ),
        ("shell-name-not-flushed", SHELL, "\nflush pending\n", "\n", crash("create | sh:a=1")),
        (
            "shell-replaced-drop-not-flushed",
            SHELL,
            "[ $dropped = no ] || flush drop\n",
            "true\n",
            crash("create mv:a=1 | sh:a=2 take ack"),
        ),
        (
            "shell-drop-not-flushed",
            SHELL,
            'flush_shared "drop/$key" 2>/dev/null ||',
            "true ||",
            "tests/test_durability.py -k the_shell_producer_flushes_a",
        ),
        (
            "shell-network-drop-not-flushed",
            SHELL,
            "    flush drop\n    exit 0",
            "    exit 0",
            "tests/test_durability.py -k the_shell_producer_flushes_what",
        ),
        (
            "shell-btrfs-not-committed",
            SHELL,
            "= btrfs ]; then",
            "= none ]; then",
            "tests/disks -k names_are_committed",
        ),
        (
            "shell-commit-does-nothing",
            SHELL,
            'sync -f "$1" && [ -w tmp ]',
            "[ -w tmp ]",
            "tests/disks -k names_are_committed",
        ),
        ("shell-failed-commit-unnoticed", SHELL, " && [ -w tmp ]", "", "tests/disks -k failed_for_another"),
        # --- the consumer's flushes
        (
            "superseded-not-flushed",
            PROTOCOL,
            "    for flushed in before:\n        flush_folder(layout, flushed)\n",
            "",
            "tests/test_durability.py -k a_newer_value",
        ),
        (
            "superseded-deferred-not-flushed",
            PROTOCOL,
            'OVERTAKEN: Why = (("pending", "inflight"),',
            'OVERTAKEN: Why = (("inflight",),',
            "tests/test_durability.py -k a_deferred_element_is_dropped",
        ),
        (
            "deferred-dropped-at-once",
            PROTOCOL,
            'OVERTAKEN: Why = (("pending", "inflight"),',
            'OVERTAKEN: Why = (("pending",),',
            "tests/test_durability.py -k a_deferred_element_is_dropped",
        ),
        (
            "deferred-drop-not-flushed",
            PROTOCOL,
            "    for flushed in after:\n        flush_folder(layout, flushed)\n",
            "",
            "tests/test_durability.py -k a_deferred_element_is_dropped",
        ),
        (
            "pending-not-flushed-before-ended",
            PROTOCOL,
            '    flush_pending(layout)\n    flush_folder(layout, "inflight")\n    flush_folder',
            '    flush_folder(layout, "inflight")\n    flush_folder',
            "tests/test_durability.py -k a_dropped_file_is_flushed_before_it",
        ),
        (
            "ended-not-flushed",
            PROTOCOL,
            '    flush_folder(layout, "inflight")\n    flush_folder(layout, "deferred")\n',
            '    flush_folder(layout, "deferred")\n',
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "ended-deferred-not-flushed",
            PROTOCOL,
            '    flush_folder(layout, "inflight")\n    flush_folder(layout, "deferred")\n',
            '    flush_folder(layout, "inflight")\n',
            crash("create add:a=1 take defer | add:a=2 take ack add:c=3"),
        ),
        (
            "ended-never-flushed",
            RETURNING,
            "            transitions.flush_ended(self._layout)\n",
            "            pass\n",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "ended-forgotten",
            CONSUMER,
            "            del self.in_flight[taken.encoded]\n        self.ended.add(taken.encoded)\n",
            "            del self.in_flight[taken.encoded]\n",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "started-without-flush",
            RECOVERY,
            "        self._ended.flush()\n        self._attempts.load()\n",
            "        self._attempts.load()\n",
            crash("create add:a=1 take | ack restart add:a=2 take ack add:c=3"),
        ),
        (
            "taken-again-without-flush",
            RETURNING,
            "        if encoded in self or len(self) > _MOST_ENDED:\n            self.flush()\n",
            "        pass\n",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "taken-again-without-a-look",
            TAKING,
            "        self._ended.flush_before(encoded)\n",
            "",
            crash("create add:a=1 take | add:a=2 ack take ack add:c=3"),
        ),
        (
            "coalesced-not-flushed",
            COALESCING,
            "                flush_pending(self._layout)  # a power cut",
            "                pass  # a power cut",
            crash("create add:a=1 forget add:a=2 forget add:a=3 | take ack"),
        ),
        (
            "drop-content-not-flushed",
            ADOPT,
            "                flush_content(self._layout, names)\n",
            "                pass\n",
            "tests/test_durability.py -k a_dropped_file_is_flushed_before_it",
        ),
        (
            "copy-of-a-drop-not-flushed",
            ADOPT,
            '                flush_all(self._layout, "tmp", copies)\n',
            "                pass\n",
            "tests/test_durability.py -k a_copy_of_a_dropped_file",
        ),
        (
            "ingested-not-flushed",
            ADOPT,
            "                flush_pending(self._layout)  # first",
            "                pass  # first",
            "tests/test_durability.py -k a_dropped_file_is_flushed_before_it",
        ),
        (
            "ingested-drop-not-flushed",
            ADOPT,
            "                flush_folders(self._layout, [entry.name for entry in finished])\n",
            "                pass\n",
            "tests/test_durability.py -k a_dropped_file_is_flushed_before_it",
        ),
        (
            "subfolder-not-flushed",
            SUBFOLDERS,
            "                flush_folder(layout, opened)\n",
            "                pass\n",
            "tests/test_durability.py -k in_a_subfolder",
        ),
        (
            "content-in-a-subfolder-not-flushed",
            SUBFOLDERS,
            "                flush_all(layout, opened, last)\n",
            "                pass\n",
            "tests/test_durability.py -k in_a_subfolder",
        ),
        (
            "what-fitted-not-flushed",
            ADDING,
            "            if self._terms.durable:  # so many were added\n"
            "                flush_published(self._layout, self._published)\n",
            "",
            "tests/test_durability.py -k what_fits_of_many",
        ),
        (
            "mark-of-subfolders-itself-not-flushed",
            SUBFOLDERS,
            "            flush(fd)\n",
            "            pass\n",
            "tests/test_durability.py -k mark",
        ),
        (
            "mark-of-subfolders-not-flushed",
            SUBFOLDERS,
            '    flush_folder(layout, ".")\n',
            "",
            "tests/test_durability.py -k mark",
        ),
        (
            "overtaken-drop-not-flushed",
            DROPPED,
            "        flush_shared(layout, fd)\n",
            "",
            "tests/test_durability.py -k a_dropped_file_is_flushed_before_an",
        ),
        # --- making an inbox
        (
            "parent-not-flushed",
            CREATING,
            "        os.fsync(parent)\n",
            "        pass\n",
            crash("| mkdir create add:a=1"),
        ),
        (
            "parent-not-looked-for",
            CREATING,
            "    _flush_parent(fd)  # whoever",
            "    pass  # whoever",
            crash("| mkdir create add:a=1"),
        ),
        (
            "unreadable-parent-not-flushed",
            CREATING,
            "        os.sync()",
            "        pass",
            "tests/test_durability.py -k where_the_parent",
        ),
        (
            "folders-not-flushed",
            CREATING,
            "    os.fsync(fd)\n    write_format",
            "    write_format",
            crash("| create add:a=1"),
        ),
        (
            "new-folder-not-flushed",
            CREATING,
            "        os.fsync(folder)\n",
            "",
            "tests/test_durability.py -k a_new_inbox",
        ),
        (
            "new-file-not-flushed",
            CREATING,
            "            os.fchmod(file, SHARED_FILE)\n        os.fsync(file)\n",
            "            os.fchmod(file, SHARED_FILE)\n",
            "tests/test_durability.py -k a_new_inbox",
        ),
        (
            "format-not-flushed",
            CREATING,
            "        os.fsync(file)\n    finally:\n        os.close(file)\n    os.rename",
            "    finally:\n        os.close(file)\n    os.rename",
            crash("| create add:a=1"),
        ),
        (
            "new-inbox-not-flushed",
            CREATING,
            "    os.fsync(root)\n",
            "",
            "tests/test_durability.py -k a_new_inbox",
        ),
        (
            "format-first",
            CREATING,
            "    for name in FOLDERS:\n        make_folder",
            "    write_format(fd, scope, shared=shared)\n    for name in FOLDERS:\n        make_folder",
            crash("| create"),
        ),
        (
            "optional-folder-not-flushed",
            LAYOUT,
            "            os.fsync(self.root)\n",
            "            pass\n",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        # --- the section: its lock, and what it writes in which order
        (
            "lock-not-taken",
            SECTION,
            "self._flock(fcntl.LOCK_EX)\n            else",
            "pass\n            else",
            "tests/test_protocol.py -k two_producers_of",
        ),
        (
            "consumer-does-not-lock",
            SECTION,
            "                self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
            "                pass\n",
            "tests/test_index.py -k whoever_does_not_wait_is_refused_while_another",
        ),
        (
            "busy-waits-for-ever",
            SECTION,
            "if monotonic() + pause > until:",
            "if False:",
            "tests/test_index.py -k whoever_does_not_wait_is_refused_while_another -o timeout=5",
        ),
        (
            "threads-not-excluded",
            SECTION,
            "        elif not self._threads.acquire(timeout=patience):\n            raise Busy\n",
            "",
            "tests/test_index.py -k whoever_does_not_wait_is_refused_while_a_thread",
        ),
        (
            "removed-index-trusted",
            SECTION,
            "            if status.st_nlink:",
            "            if True:",
            "tests/test_index.py -k an_index_that -o timeout=20",
        ),
        (
            "header-not-written",
            INDEX,
            "        self._write_header(number, self._lines)\n        return number",
            "        self._last = number\n        return number",
            "tests/test_index.py -k the_header_says",
        ),
        (
            "number-given-twice",
            INDEX,
            "max(self._last + 1, now)",
            "max(self._last, now)",
            "tests/test_index.py -k a_clock_that_is_set",
        ),
        (
            "clock-believed",
            INDEX,
            "max(self._last + 1, now)",
            "now",
            "tests/test_inbox.py -k numbers_increase_when",
        ),
        (
            "absurd-clock-believed",
            INDEX,
            "            now = 0  # a clock",
            "            pass  # a clock",
            "tests/test_index.py -k a_clock_that_is_wrong",
        ),
        (
            "line-not-written",
            INDEX,
            '        self._write(b"%010d %019d \\n" % (crc, number), slot)\n',
            "        pass\n",
            "tests/test_index.py -k a_key_has",
        ),
        (
            "line-after-the-rename",
            SECTION,
            "                result = step(*arguments)\n",
            "                lines: list[Any] = []\n"
            "                write, self._write_line = self._write_line, lambda *line: "
            "lines.append(line)\n"
            "                result = step(*arguments)\n"
            "                for line in lines:\n"
            "                    write(*line)\n"
            "                del self._write_line\n",
            "tests/test_index.py -k a_number_whose",
        ),
        (
            "part-of-a-line-is-enough",
            INDEX,
            "        if os.pwrite(self._fd, data, offset) != len(data):",
            "        if not os.pwrite(self._fd, data, offset):",
            "tests/test_index.py -k a_number_whose",
        ),
        (
            "failed-line-ignored",
            INDEX,
            '        self._write(b"%010d %019d \\n" % (crc, number), slot)\n',
            "        try:\n"
            '            self._write(b"%010d %019d \\n" % (crc, number), slot)\n'
            "        except OSError:\n"
            "            pass\n",
            "tests/test_index.py -k a_number_whose",
        ),
        (
            "failed-header-ignored",
            INDEX,
            "        self._write(header, 0)\n        self._last = self",
            "        try:\n"
            "            self._write(header, 0)\n"
            "        except OSError:\n"
            "            pass\n"
            "        self._last = self",
            "tests/test_index.py -k a_number_whose",
        ),
        (
            "line-believed",
            INDEX,
            "            if self._waits(element_name(number, encoded)):",
            "            if True:",
            "tests/test_index.py -k a_key_that_comes",
        ),
        (
            "lowest-line-first",
            LINES,
            "        found.sort(reverse=True)\n",
            "        found.sort()\n",
            "tests/test_index.py -k of_two_places",
        ),
        (
            "third-line-of-a-key",
            INDEX,
            "if blank >= 0 and len(mine) < 2:",
            "if blank >= 0:",
            "tests/test_index.py -k a_key_that_comes",
        ),
        (
            "highest-line-written-over",
            INDEX,
            "home + mine[-1][1] if mine",
            "home + mine[0][1] if mine",
            "tests/test_index.py -k the_line_of",
        ),
        (
            "full-bucket-not-made-anew",
            INDEX,
            '        """A bucket is full."""\n        self.make_anew()\n',
            '        """A bucket is full."""\n',
            "tests/test_index.py -k a_full_bucket",
        ),
        (
            "line-at-any-offset",
            LINES,
            "if at % LINE == 0 and digits",
            "if digits",
            "tests/test_index.py -k what_is_no_line",
        ),
        (
            "line-without-end",
            LINES,
            ' and bucket[at + 30 : at + LINE] == b" \\n":',
            ":",
            "tests/test_index.py -k what_is_no_line",
        ),
        (
            "lock-kept",
            SECTION,
            "                    self._flock(fcntl.LOCK_UN)\n",
            "                    pass\n",
            "tests/test_index.py -k a_lock_that_is",
        ),
        (
            "lock-not-left-by-closing",
            SECTION,
            "                except OSError:\n                    self.close()\n            self._threads",
            "                except OSError:\n                    pass\n            self._threads",
            "tests/test_index.py -k a_lock_that_the",
        ),
        (
            "leave-not-repeated",
            SECTION,
            "                    self._leave(here)\n                    break\n",
            "                    break\n",
            "tests/test_interrupts.py -k a_call_may_be_interrupted_anywhere",
        ),
        (
            "handler-waits-for-itself",
            SECTION,
            "        if here in _inside:",
            "        if False:",
            "tests/test_interrupts.py -k an_add_in_a_handler_that_interrupted_an_add_is",
        ),
        # --- the table made anew
        (
            "tag-not-compared",
            INDEX,
            "self._is_ours = self._seen_tag == self.tag",
            "self._is_ours = True",
            "tests/test_index.py -k after_a_boot",
        ),
        (
            "set-back-header-believed",
            INDEX,
            "        if self._last < self._highest:",
            "        if False:",
            "tests/test_index.py -k an_index_that",
        ),
        (
            "table-not-said-to-be-gone",
            INDEX,
            "        self._write_header(last, 0)  # says",
            "        self._lines = 0  # says",
            "tests/test_index.py -k a_table_that",
        ),
        (
            "double-places-get-a-line",
            TABLE,
            "            known = _without_double(lines)\n",
            "            pass\n",
            "tests/test_index.py -k a_key_at_two_places",
        ),
        (
            "part-of-a-full-piece-known",
            TABLE,
            "        if done > self._size(piece):",
            "        if False:",
            "tests/test_table.py -k a_piece_has_room",
        ),
        (
            "in-flight-not-looked-at",
            INDEX,
            'for folder in ("pending", "inflight", "deferred"):',
            'for folder in ("pending", "deferred"):',
            "tests/test_index.py -k a_key_that_is",
        ),
        (
            "deferred-not-looked-at",
            INDEX,
            'for folder in ("pending", "inflight", "deferred"):',
            'for folder in ("pending", "inflight"):',
            "tests/test_index.py -k a_key_that_is",
        ),
        (
            "future-believed",
            INDEX,
            '(number <= limit or folder in ("inflight", "deferred")):',
            "True:",
            "tests/test_index.py -k an_absurd_number_is",
        ),
        (
            "future-clamped",
            INDEX,
            "                highest = number\n",
            "                highest = number\n            elif number > limit:\n                highest = limit\n",
            "tests/test_index.py -k an_absurd_number_is",
        ),
        (
            "future-in-flight-not-believed",
            INDEX,
            '(number <= limit or folder in ("inflight", "deferred")):',
            "number <= limit:",
            "tests/test_index.py -k a_clock_that_is_set",
        ),
        (
            "failed-not-looked-at",
            INDEX,
            'for folder in ("pending", "failed", "inflight", "deferred"):',
            'for folder in ("pending", "inflight", "deferred"):',
            "tests/test_index.py -k numbers_go_on",
        ),
        (
            "absurd-number-believed",
            INDEX,
            "parts[0] < _HIGHEST and parts",
            "parts",
            "tests/test_index.py -k an_absurd_number_among",
        ),
        (
            "header-not-as-written",
            LINES,
            "        if header_line(*found, more) == header:",
            "        if True:",
            "tests/test_index.py -k a_header_with",
        ),
        (
            "header-with-other-digits",
            LINES,
            "        and last.isdigit()\n",
            "",
            "tests/test_index.py -k a_header_with",
        ),
        (
            "header-with-other-digits-in-lines",
            LINES,
            "        and lines.isdigit()\n",
            "",
            "tests/test_index.py -k a_header_with",
        ),
        (
            "header-with-another-tag",
            LINES,
            "        and tag.isascii()\n",
            "",
            "tests/test_index.py -k a_header_with",
        ),
        (
            "header-of-the-far-future",
            LINES,
            "        and int(last) < HIGHEST\n",
            "",
            "tests/test_index.py -k a_header_of",
        ),
        (
            "header-with-part-of-a-bucket",
            LINES,
            "        and not int(lines) % BUCKET\n",
            "",
            "tests/test_index.py -k a_header_of",
        ),
        # --- the steps
        (
            "newer-at-its-place-overlooked",
            PROTOCOL,
            ' or layout.exists("pending", element_name(number, encoded))\n',
            "\n",
            "tests/test_protocol.py -k a_value_that_lands",
        ),
        (
            "newer-in-the-index-overlooked",
            PROTOCOL,
            "return index.find(encoded) > number or layout",
            "return layout",
            "tests/test_protocol.py -k a_value_that_comes",
        ),
        (
            "index-not-mended-before-it-is-asked",
            PROTOCOL,
            "        index.last_number()\n    except OSError:",
            "        pass\n    except OSError:",
            "tests/test_index.py -k a_value_that_goes",
        ),
        (
            "goes-back-without-a-look",
            PROTOCOL,
            "    if newer_waits(layout, index, number, encoded):\n"
            '        return "newer"\n'
            "    try:\n"
            '        _rename(layout, "inflight", name, to, new)',
            '    try:\n        _rename(layout, "inflight", name, to, new)',
            "tests/test_inbox.py -k rollback_with_a",
        ),
        (
            "comes-due-without-a-look",
            PROTOCOL,
            "    if newer_waits(layout, index, number, encoded):\n"
            '        return "newer"\n'
            "    try:\n"
            '        _rename(layout, "deferred"',
            '    try:\n        _rename(layout, "deferred"',
            "tests/test_consumer.py -k a_value_that",
        ),
        (
            "requeued-without-the-lock",
            RETURNING,
            "self._index.try_locked(\n                transitions.go_back, self._layout, self._index, way.name, way.folder, way.new\n            )",
            "transitions.go_back(self._layout, self._index, way.name, way.folder, way.new)",
            "tests/test_stopped.py -k what_goes_back",
        ),
        (
            "superseded-kept",
            RETURNING,
            '                transitions.discard(self._layout, "inflight", way.name, transitions.SUPERSEDED)\n',
            "                pass\n",
            "tests/test_inbox.py -k never_two_of_one_key_are_out_in",
        ),
        (
            "older-deferred-kept",
            TAKING,
            '        discard(self._layout, "deferred", deferred, OVERTAKEN)\n',
            "",
            "tests/test_inbox.py -k never_two_of_one_key_are_out_in",
        ),
        (
            "older-deferred-remembered",
            TAKING,
            "        if older and element_of(older) <= name:",
            "        if False:",
            "tests/test_inbox.py -k a_newer_value_supersedes",
        ),
        (
            "coalesced-from-the-top",
            COALESCING,
            "        for number in others:",
            "        for number in reversed(others):",
            "tests/test_protocol.py -k three_places_are",
        ),
        (
            "coalesced-in-flight",
            COALESCING,
            " or is_held(encoded):",
            ":",
            "tests/test_consumer.py -k a_key_that_is",
        ),
        (
            "two-of-a-key-in-flight",
            TAKING,
            "        if encoded in self._in_flight or encoded in self._returning.ways:",
            "        if False:",
            "tests/test_inbox.py -k never_two_of_one_key_are_out",
        ),
        (
            "what-cannot-go-back-is-passed",
            TAKING,
            "        if encoded in self._in_flight or encoded in self._returning.ways:",
            "        if encoded in self._in_flight:",
            "tests/test_consumer.py -k what_could_not",
        ),
        (
            "no-mark",
            LISTING,
            'list(takewhile(element_name(mark + 1, "").__le__, names))',
            "[]",
            "tests/test_inbox.py -k a_value_added",
        ),
        (
            "place-not-asked-for",
            CONSUMER,
            "        if gone := self._layout.where_it_went():",
            '        if gone := "":',
            "tests/test_layout.py -k an_inbox_that_was_moved",
        ),
        (
            "place-not-asked-for-by-add",
            ADDING,
            "            if gone := layout.where_it_went():",
            '            if gone := "":',
            "tests/test_layout.py -k an_inbox_that_was_moved",
        ),
        (
            "cut-short-not-noted",
            CONSUMER,
            "        self._in_doubt = True\n        taken = self._take_next()",
            "        taken = self._take_next()",
            "tests/test_consumer.py -k a_take_that",
        ),
        (
            "cut-short-end-not-noted",
            CONSUMER,
            "doubt, self._in_doubt = self._in_doubt, True",
            "doubt = self._in_doubt",
            "tests/test_interrupts.py -k a_call_may_be_interrupted_anywhere",
        ),
        (
            "disown-left-out",
            SESSION,
            "            consumer.disown(self.claims)\n",
            "",
            "tests/test_interrupts.py -k a_call_may_be_interrupted_anywhere",
        ),
        (
            "running-calls-not-looked-at",
            HANDLE,
            "if self.closed and not self._calls:",
            "if self.closed:",
            "tests/test_closing.py -k an_add_that",
        ),
        (
            "nobody-closes-after-the-last-call",
            HANDLE,
            "if self.closed and not self._calls:",
            "if False:",
            "tests/test_closing.py -k a_take_that",
        ),
        (
            "attempts-not-counted",
            TAKING,
            "(note.attempts + 1, note.alone) if note",
            "(1, note.alone) if note",
            "tests/test_inbox.py -k attempts_survive_restarts",
        ),
        (
            "death-not-counted",
            RECOVERY,
            "attempts = (note.attempts if note else 0) + 1\n",
            "attempts = 1\n",
            "tests/test_inbox.py -k dying_puts_back",
        ),
        (
            "attempts-not-on-disk",
            ATTEMPTS,
            "            os.symlink(\n                f",
            "            (lambda *_, **__: None)(\n                f",
            "tests/test_inbox.py -k attempts_survive_restarts",
        ),
        (
            "attempts-of-another-value",
            ATTEMPTS,
            "        if note and (note.inode, note.modified) == (status.st_ino, status.st_mtime_ns):",
            "        if note:",
            "tests/test_inbox.py -k attempts_survive_restarts",
        ),
        (
            "attempts-of-another-value-after-a-death",
            ATTEMPTS,
            "        if note is None:\n            self.forget(name)",
            "        if note is None:\n            pass",
            "tests/test_inbox.py -k attempts_of_its_own",
        ),
        (
            "attempts-of-what-its-handler-wrote-to",
            RECOVERY,
            "self._attempts.of_in_flight(name)",
            "self._attempts.of(name, status)",
            "tests/test_misbehaving.py -k replaces_its_file",
        ),
        (
            "suspect-not-alone",
            CONSUMER,
            "        if self.in_flight and self._must_be_alone(name):",
            "        if False:",
            "tests/test_inbox.py -k a_suspect_waits",
        ),
        (
            "back-off-by-the-wall-clock",
            RECOVERY,
            "left = min(due - self._ownership.now(), due - began) / 1e9",
            "left = (due - self._ownership.now()) / 1e9",
            "tests/test_consumer.py -k a_back_off",
        ),
        (
            "deferred-again-after-a-restart",
            RECOVERY,
            "max(0.0, self.left_of(name))",
            "MAX_DELAY",
            "tests/test_inbox.py -k a_deferred_element_survives",
        ),
        (
            "second-consumer-let-in",
            "fsinbox/consumer/ownership.py",
            "return lock_descriptor(fd, blocking=False)",
            "return True",
            "tests/test_inbox.py -k a_second_consumer_is",
        ),
        # --- drop/
        (
            "drop-overlooked",
            ADDING,
            "finished_drop(layout, key) if may_be else None",
            "None",
            "tests/test_adopt.py -k an_add_after_a_drop_of_its_key_wins",
        ),
        (
            "drop-overlooked-by-many",
            ADDING,
            "            listed.add(name)\n",
            "",
            "tests/test_adopt.py -k many_that_are_added_after_a_drop",
        ),
        (
            "drop-overlooked-among-many",
            ADDING,
            "                return None\n        return listed",
            "                break\n        return listed",
            "tests/test_adopt.py -k many_that_are_added_after_a_drop",
        ),
        (
            "drop-not-moved",
            PROTOCOL,
            "            moved = move_drop(layout, dropped, name)\n",
            "            moved = False\n",
            "tests/test_adopt.py -k an_add_after_a_drop_of_its_key_wins",
        ),
        (
            "drop-moved-outside-the-section",
            ADDING,
            "        self._index.locked(\n            publish,",
            "        for at, (temporary, encoded, dropped) in enumerate(drafts):\n"
            "            if dropped is not None:\n"
            "                number, _, _ = self._index.locked(self._index.admit, encoded)\n"
            "                import os\n"
            "                os.rename(dropped, f'{number:019}-{encoded}', "
            "src_dir_fd=self._layout.folder('drop'), dst_dir_fd=self._layout.folder('pending'))\n"
            "                drafts[at] = temporary, encoded, None\n"
            "        self._index.locked(\n            publish,",
            "tests/interleave -k nothing_is_wrong[dropped]",
        ),
        (
            "does-not-lie-still",
            DROPPED,
            "    sleep(UNTOLD - quiet)\n    try:",
            "    return True\n    try:",
            "tests/test_hosts.py -k a_drop_that_something",
        ),
        (
            "lies-still-not-asked",
            DROPPED,
            "writer is None and not renamed_in(status) and not _lies_still(layout, folder, name, status)",
            "writer is None and not renamed_in(status)",
            "tests/test_hosts.py -k a_drop_that_lies",
        ),
        (
            "writer-overlooked",
            DROPPED,
            "        if writer or (\n",
            "        if (\n",
            "tests/test_adopt.py -k an_add_is_not",
        ),
        (
            "anything-adopted",
            DROPPED,
            "    if kind != stat.S_IFREG:",
            "    if False:",
            "tests/test_adopt.py -k what_is_no_plain",
        ),
        (
            "any-size-adopted",
            ADOPT,
            "if status.st_size <= self._max_size:",
            "if True:",
            "tests/test_adopt.py -k what_is_no_plain",
        ),
        (
            "grown-file-adopted",
            ADOPT,
            "            if self._is_too_large(name, status):  # (it has grown just now)\n                return None\n",
            "",
            "tests/test_copying.py -k past_the_limit",
        ),
        (
            "linked-file-not-copied",
            COPYING,
            "        if status.st_nlink > 1:\n            return True\n",
            "",
            "tests/test_copying.py -k hard_link",
        ),
        (
            "another-user-s-file-not-copied",
            COPYING,
            "        return status.st_uid != os.fstat(",
            "        return False and status.st_uid != os.fstat(",
            "tests/test_copying.py -k owner_of_a_dropped_file",
        ),
        (
            "clone-of-any-size-believed",
            COPYING,
            "            if size == status.st_size and _stamp",
            "            if _stamp",
            "tests/test_copying.py -k clone_that_is_not",
        ),
        (
            "changed-drop-overwritten-by-its-copy",
            PROTOCOL,
            "os.lstat(last, dir_fd=layout.folder(folder))) != _identity(seen)",
            "os.lstat(last, dir_fd=layout.folder(folder))) == 0",
            "tests/test_copying.py -k changes_before_the_section",
        ),
        (
            "replaced-drop-overwritten-by-a-copy",
            PROTOCOL,
            'if _identity(os.lstat(place, dir_fd=layout.folder("pending"))) == _identity(seen):',
            "if True:",
            "tests/test_copying.py -k replaced_at_the_last",
        ),
        (
            "list-of-anybody-believed",
            IGNORING,
            "        if refused := _why_refused(layout, os.fstat(fd)):\n",
            "        if refused := '':\n",
            "tests/test_ignoring.py -k replaced_while_it_is_opened",
        ),
        (
            "open-file-adopted",
            ADOPT,
            "        if writer:\n            return max",
            "        if False:\n            return max",
            "tests/test_adopt.py -k a_file_that_a",
        ),
        (
            "link-in-place-of-a-subfolder-followed",
            SUBFOLDERS,
            "inner = os.open(part, OPEN_FOLDER, dir_fd=fd)",
            "inner = os.open(part, OPEN_FOLDER & ~os.O_NOFOLLOW, dir_fd=fd)",
            "tests/test_subfolders.py -k link_in_place_of_a_folder",
        ),
        (
            "subfolder-overlooked-by-an-add",
            DROPPED,
            "    if not (may_be_path(key) and are_ingested(layout)):\n",
            "    if True:\n",
            "tests/test_subfolders.py -k an_add_that_begins_later",
        ),
        (
            "way-out-of-drop",
            SUBFOLDERS,
            '    return all(part and part[0] != "." for part in key.split("/"))\n',
            "    return True\n",
            "tests/test_subfolders.py -k no_path_of_a_file",
        ),
        (
            "subfolder-watched-too-late",
            SUBFOLDERS,
            "                        self._entering(self._layout.folder(folder))\n                    yield from "
            "self._list(folder, path)\n",
            "                        pass\n                    yield from self._list(folder, path)\n"
            "                    if path:\n"
            "                        self._entering(self._layout.folder(folder))\n",
            "tests/test_subfolders.py -k made_and_filled",
        ),
        (
            "subfolders-without-a-bound",
            SUBFOLDERS,
            "            if looked_into > MOST:",
            "            if False:",
            "tests/test_subfolders.py -k more_folders",
        ),
        (
            "refused-drop-passed-over",
            DROPPED,
            "older value in place of a newer\n        raise\n",
            "older value in place of a newer\n        return None\n",
            "tests/test_adopt.py -k an_add_that",
        ),
        # --- an inbox that several hosts share
        (
            "header-not-flushed-for-hosts",
            SECTIONS,
            "        os.fsync(self._fd)  # else",
            "        pass  # else",
            "tests/test_hosts.py -k an_add_that",
        ),
        (
            "open-not-said",
            SECTIONS,
            "        if not self._is_open or monotonic() - self._told > LONG:",
            "        if False:",
            "tests/test_hosts.py -k each_kind_of",
        ),
        (
            "open-not-said-with-a-number",
            SECTIONS,
            'self._set(first + expected - 1, b"open", expected)',
            'self._set(first + expected - 1, b"done", 0)',
            "tests/test_hosts.py -k a_section_that_was",
        ),
        (
            "long-section-does-not-ask",
            SECTIONS,
            " or monotonic() - self._told > LONG:",
            ":",
            "tests/test_hosts.py -k a_section_that_took",
        ),
        (
            "tag-kept-after-open",
            SECTIONS,
            "self.tag = tag if done else _new_tag()",
            "self.tag = tag or _new_tag()",
            "tests/test_hosts.py -k a_section_that_was",
        ),
        (
            "tag-not-in-the-crc",
            SECTIONS,
            'crc32(encoded.encode("ascii"), crc32(tag.encode("ascii")))',
            'crc32(encoded.encode("ascii"))',
            "tests/test_hosts.py -k what_a_cut",
        ),
        (
            "reserved-counted-on",
            SECTIONS,
            "last - int(header[58:63])",
            "last",
            "tests/test_hosts.py -k a_listing_does",
        ),
        (
            "header-not-compared",
            SECTIONS,
            "        if os.pread(self._fd, HEADER, 0) != self._seen:",
            "        if False:",
            "tests/test_hosts.py -k a_producer_that",
        ),
        (
            "late-header-believed",
            SECTIONS,
            "        if self._last < self._highest:",
            "        if False:",
            "tests/test_hosts.py -k a_header_that_comes",
        ),
        (
            "line-above-the-last-not-doubted",
            SECTIONS,
            "        if place[0] <= self._last:\n",
            "        if True:\n",
            "tests/test_hosts.py -k a_line_above",
        ),
        (
            "section-left-open",
            SECTIONS,
            '            self._set(self._last, b"done", 0)\n',
            "            pass\n",
            "tests/test_hosts.py -k order_and_replacement",
        ),
        (
            "lost-lease-unnoticed",
            CONSUMER,
            "        if not was_there:\n            self.ownership.verify()\n",
            "",
            "tests/test_lease.py -k who_has_lost_the_lease_cannot_acknowledge",
        ),
        (
            "folder-of-the-dead-kept",
            "fsinbox/consumer/lease.py",
            "                        os.rmdir(held.name, dir_fd=root)\n                        break",
            "                        break",
            "tests/test_lease.py -k who_has_lost_the_lease_cannot_take",
        ),
        (
            "standby-not-told-of-a-lapse",
            "fsinbox/consumer/rival.py",
            "        is_due = now >= self._lapses or not layout.sharing.one_clock\n",
            "        is_due = False\n",
            "tests/test_lease.py -k a_standby_takes_over_as_soon_as_the_lease_has_lapsed",
        ),
        (
            "draft-of-a-group-not-made-exclusively",
            FILES,
            "slow_exclusive and not layout.file_mode & 0o066:",
            "slow_exclusive:",
            "tests/test_trips.py -k each_is_made_exclusively",
        ),
        # --- links, and what is no file
        (
            "folder-link-followed",
            FOLDERS,
            "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
            "os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
            "tests/test_layout.py -k a_folder_that",
        ),
        (
            "format-link-followed",
            LAYOUT,
            'os.open("format", os.O_RDONLY | os.O_NOFOLLOW |',
            'os.open("format", os.O_RDONLY |',
            "tests/test_layout.py -k a_format_that",
        ),
        (
            "payload-link-followed",
            FILES,
            "READ = os.O_RDONLY | os.O_NOFOLLOW |",
            "READ = os.O_RDONLY |",
            "tests/test_protocol.py -k a_link_is",
        ),
        (
            "index-link-followed",
            SECTION,
            "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW |",
            "os.O_RDWR | os.O_CREAT |",
            "tests/test_index.py -k what_is_no_index",
        ),
        (
            "lock-link-followed",
            "fsinbox/consumer/ownership.py",
            "_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW |",
            "_OPEN = os.O_RDWR | os.O_CREAT |",
            "tests/hostile/test_hostile.py -k consumer.lock",
        ),
        # --- errors overlooked
        (
            "short-write-overlooked",
            FILES,
            "        view = view[os.write(fd, view) :]",
            "        os.write(fd, view)\n        return",
            "tests/test_inbox.py -k a_payload_is",
        ),
        (
            "failed-syncfs-overlooked",
            FILES,
            "if syncfs(layout.folder(folder)):",
            "if syncfs(layout.folder(folder)) and False:",
            "tests/test_protocol.py -k a_flush_of_many",
        ),
        (
            "failed-move-overlooked",
            SHELL,
            '|| refused "cannot move the value to $inbox/pending"',
            "|| true",
            "tests/faults/test_refusals.py -k 'about_an_error and sh-replacing'",
        ),
        (
            "failed-drop-move-overlooked",
            SHELL,
            '|| refused "cannot move drop/$key"',
            "|| true",
            "tests/test_producers.py -k a_drop_that",
        ),
        # --- the shell producer's steps
        (
            "shell-lock-not-taken",
            SHELL,
            '        flock 9 || refused "cannot lock $inbox/index"\n',
            "",
            "tests/test_shell_producer.py -k it_waits_for",
        ),
        (
            "shell-line-believed",
            SHELL,
            'if [ -e "pending/$line-$encoded" ] || [ -h "pending/$line-$encoded" ]; then',
            "if true; then",
            "tests/test_shell_producer.py -k a_line_is",
        ),
        (
            "shell-header-not-written",
            SHELL,
            "    printf '%s %s %s%s\\n' \"$place\"",
            '    true "$place"',
            "tests/test_shell_producer.py -k without_a_table",
        ),
        (
            "shell-drop-overlooked",
            SHELL,
            "! finished_drop || dropped=yes\n",
            "",
            "tests/test_shell_producer.py -k a_finished_drop",
        ),
        (
            "shell-tag-not-compared",
            SHELL,
            '[ "$tag" = "$boot" ] || {',
            "true || {",
            "tests/test_shell_producer.py -k without_a_table",
        ),
        # --- what people do
        (
            "mended-not-flushed",
            "fsinbox/doctor/mending.py",
            "            flush(found.root)\n",
            "            pass\n",
            "tests/test_durability.py -k what_the_doctor",
        ),
        (
            "import-not-flushed",
            "fsinbox/operate/archive.py",
            "        files.flush_pending(self._layout)\n",
            "        pass\n",
            "tests/test_archive.py -k an_import_is",
        ),
        (
            "wish-not-flushed",
            CONTROL,
            '    if durable:\n        flush_folder(layout, "control")\n',
            "",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        (
            "end-of-wish-not-flushed",
            CONTROL,
            '        return False\n    flush_folder(layout, "control")\n',
            "        return False\n",
            "tests/test_steering.py -k wishes_are_flushed",
        ),
        (
            "steering-not-flushed-at-its-end",
            STEERING,
            "        try:\n            self.flush()\n",
            "        try:\n            pass\n",
            "tests/test_steering.py -k what_was_done",
        ),
        (
            "steering-not-flushed",
            STEERING,
            "files.flush_folder(self.layout, folder)",
            "pass",
            "tests/test_steering.py -k what_was_done",
        ),
        (
            "many-not-flushed-now-and-then",
            STEERING,
            "            self.flush()\n\n    @contextmanager",
            "            pass\n\n    @contextmanager",
            "tests/test_steering.py -k many_are_flushed",
        ),
        (
            "retry-does-not-look-for-a-newer-one",
            PROTOCOL,
            "        if parsed and parsed[1] == encoded and parsed[0] > number:\n",
            "        if False:\n",
            "tests/test_steering.py -k a_newer_value_that_is",
        ),
        (
            "retry-looks-once",
            PROTOCOL,
            "pending/.\n    if _newer_is_held(layout, number, encoded):",
            "pending/.\n    if False:",
            "tests/test_protocol.py -k what_is_taken",
        ),
        (
            "retry-does-not-look-at-what-waits",
            PROTOCOL,
            "if _newer_is_held(layout, number, encoded) or newer_waits(layout, index, number, encoded):",
            "if _newer_is_held(layout, number, encoded):",
            "tests/test_steering.py -k a_newer_value_that_waits",
        ),
        (
            "what-was-requeued-is-not-late",
            TAKING,
            "            if self._foreign.looks_regular(older):",
            "            if False:",
            "tests/test_steering.py -k what_was_requeued",
        ),
        (
            "hold-is-not-heeded",
            CONSUMER,
            "            if held and encoded_of(name) in held:",
            "            if False:",
            "tests/test_steering.py -k a_key_on_hold_is",
        ),
        # --- values that are exchanged
        (
            "durable-add-exchanges",
            ADDING,
            "        self._swap = self._exchange if self._layout.exchanges and not terms.durable else None\n",
            "        self._swap = self._exchange if self._layout.exchanges else None\n",
            "tests/test_exchanging.py -k not_to_be_lost",
        ),
        (
            "exchanges-unasked",
            INBOX,
            "        volatile: bool = False,\n",
            "        volatile: bool = True,\n",
            "tests/test_exchanging.py -k not_to_be_lost",
        ),
        (
            "exchanges-what-is-handed-over",
            ADDING,
            "                self._swap = None ",
            "                pass ",
            "tests/test_exchanging.py -k handed_over",
        ),
        (
            "exchanges-where-hosts-share",
            INBOX,
            "volatile and self._handle.layout.sharing is None",
            "volatile",
            "tests/test_exchanging.py -k hosts_share",
        ),
        (
            "exchange-asked-for-again",
            EXCHANGING,
            "        layout.exchanges = False\n",
            "",
            "tests/test_exchanging.py -k asked_again",
        ),
        (
            "exchange-renamed-after-any-error",
            EXCHANGING,
            "        if error.errno not in NEVER:\n            raise\n",
            "",
            "tests/test_exchanging.py -k may_pass",
        ),
        (
            "exchanged-value-left-in-tmp",
            EXCHANGING,
            "        return False\n    discard_temporary(layout, temporary)\n",
            "        return False\n",
            "tests/test_exchanging.py -k takes_the_place",
        ),
        (
            "exchange-with-nothing",
            EXCHANGING,
            "    except FileNotFoundError:\n        return False  # taken meanwhile\n",
            "",
            "tests/test_exchanging.py -k taken_meanwhile",
        ),
        # --- a tree that is watched
        (
            "watch-records-first",
            f"{TREE}/queueing.py",
            "                self._inbox.add_many((key, data) for _, key, data in batch)\n",
            "                self._record([(change, key) for change, key, _ in batch])\n                self._inbox.add_many((key, data) for _, key, data in batch)\n",
            "tests/test_watch_command.py -k recorded_when_the_inbox",
        ),
        (
            "watch-queues-a-torn-file",
            f"{TREE}/queueing.py",
            "                raise Unsteady\n        except OSError",
            "                pass\n        except OSError",
            "tests/test_tree.py -k changes_while_it_is_read",
        ),
        (
            "watch-takes-unreadable-for-removed",
            f"{TREE}/scanning.py",
            "                gone -= {",
            "                _ = {",
            "tests/test_watch_command.py -k cannot_be_read_counts",
        ),
        (
            "watch-takes-unmounted-for-empty",
            f"{TREE}/folders.py",
            "            if not os.listdir(fd):",
            "            if False:",
            "tests/test_watch_command.py -k mount_point_without",
        ),
        (
            "watch-does-not-rescan-after-an-overflow",
            f"{TREE}/watcher.py",
            "            self._scan, self._next_scan = None, 0.0",
            "            pass",
            "tests/test_watch_command.py -k kernel_dropped",
        ),
        (
            "watch-follows-a-linked-folder",
            f"{TREE}/folders.py",
            "_OPEN_FOLDER = _OPEN_ROOT | os.O_NOFOLLOW",
            "_OPEN_FOLDER = _OPEN_ROOT",
            "tests/test_tree.py -k link_leads_nowhere",
        ),
        (
            "watch-lists-before-it-watches",
            f"{TREE}/scanning.py",
            "                self.watch(self.tree, folder, fd)\n                listing = self.tree.list(fd, folder)",
            "                listing = self.tree.list(fd, folder)\n                self.watch(self.tree, folder, fd)",
            "tests/test_tree.py -k watched_before_it_is_listed",
        ),
    )
]
