"""An inbox that is open: its folders and its index, for calls in any thread, until it is closed."""

from __future__ import annotations

import os
from _weakref import ref

from . import section
from .errors import InboxError, UnusableInbox, WrongState
from .layout import Layout
from .opening import open_index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_open: set[ref[Handle]] = set()
"""Those of this process. (A weakref.WeakSet: importing that is a tenth of what a cold producer imports.)"""


class Handle:
    """The open folders and index of an inbox.

    Whoever uses them says so around each call (`begin`, `end`): close() then leaves them open to the end of
    the last call that runs. A forked child opens them anew: it must not share its parent's locks and
    descriptors.
    """

    def __init__(self, path: str, *, create: bool, shared: bool, scope: str, force: bool) -> None:
        """Open the inbox: see Layout. Raises UnusableInbox."""
        self.pid = os.getpid()
        self.closed = False
        self.at_fork: Callable[[], object] | None = None
        """Called in a forked child, as soon as it is: lets go of the consumer's lock."""
        self._calls: set[object] = set()  # that run: the last one to end closes what was closed meanwhile
        scope = "" if scope == "auto" else scope
        self.layout = Layout(path, create=create, shared=shared, scope=scope, force=force)
        try:
            self.index = open_index(self.layout)
        except BaseException:
            self.layout.close()
            raise
        _open.add(ref(self, _open.discard))

    @property
    def path(self) -> str:
        """Absolute path of the inbox."""
        return self.layout.path

    def begin(self, call: object) -> Layout:
        """Have the folders stay open until end(call). Raises WrongState if the inbox was closed."""
        self._calls.add(call)  # first: close() looks at it after it has set `closed`
        return self.layout if self.pid == os.getpid() and not self.closed else self.current()

    def end(self, call: object) -> None:
        """The call has ended, or never began. Safe to call twice."""
        self._calls.discard(call)
        if self.closed and not self._calls:
            self._close_files()

    def current(self) -> Layout:
        """Return the layout, opened anew in a forked child. Raises WrongState if the inbox was closed."""
        if self.closed:
            raise WrongState(f"inbox {self.path} was closed: open it again")
        if self.pid != os.getpid():
            self._reopen_after_fork()
        return self.layout

    def close(self, last: Callable[[], object]) -> None:
        """No call begins from now on. `last` is run first, while all is still open. Safe to call twice."""
        call = object()
        self._calls.add(call)
        self.closed = True
        try:
            last()
        finally:
            self.end(call)

    def _reopen_after_fork(self) -> None:
        self.pid = os.getpid()
        self._close_files()
        exchanges = self.layout.exchanges
        self.layout = Layout(self.layout.path, create=False)
        self.layout.exchanges = exchanges
        self.index = open_index(self.layout)

    def _close_files(self) -> None:
        self.index.close()
        self.layout.close()


class Looking:
    """Around a look at the folders: what the system says against it is told as an error of ours."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __enter__(self) -> Layout:
        return self._handle.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.end(self)
        if isinstance(error, OSError) and not isinstance(error, InboxError):
            raise UnusableInbox(
                f"cannot look into inbox {self._handle.path}: {error}: "
                "nothing was changed; mend that, look again"
            ) from error


def _after_fork() -> None:
    """In a forked child: let go of the parent's locks, which the child would otherwise hold after its
    death."""
    section.forget_sections()
    for handle in filter(None, [known() for known in list(_open)]):
        handle._calls.clear()  # of threads that are not here
        handle.index.close()
        if handle.at_fork:
            handle.at_fork()


os.register_at_fork(after_in_child=_after_fork)
