"""`fsinbox web`: the site."""

from __future__ import annotations

import click

from .options import chosen, inbox_option, printable
from .seeing import limit_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


@click.command()
@inbox_option
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than loopback are reached by all.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=8470,
    show_default=True,
    help="0: any that is free.",
)
@click.option(
    "--allow-changes", is_flag=True, help="Let whoever has the token retry, discard, pause and resume."
)
@click.option("--private", is_flag=True, help="Ask for the token before anything is shown, too.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another name that the site is called by; may be repeated.",
)
@limit_options
def web(
    inbox: str | None,
    host: str,
    port: int,
    allow_changes: bool,
    private: bool,
    allow_host: tuple[str, ...],
    max_age: float | None,
    max_waiting: int | None,
    max_failed: int | None,
) -> None:
    """Show the inbox in a browser.

    How it stands, each element, and why what failed has failed.

    Its address is printed on standard error. Anybody who reaches it may look (see --private); nothing can be
    changed without --allow-changes and the token that is printed then. It runs until SIGTERM or SIGINT. Exit
    status: 0 stopped, 2 usage or the extra is not installed, 3 the inbox cannot be used, or the port is
    taken.
    """
    from contextlib import closing
    from ipaddress import ip_address

    from ..operate.report import Limits
    from ..store.layout import Layout
    from .exits import EXIT_USAGE
    from .options import Failure

    try:
        from ..web.app import make_app
        from ..web.auth import LOOPBACK, Rules
        from ..web.server import serve
    except ModuleNotFoundError as error:
        raise Failure(
            f"web needs {error.name}, which is not installed: pip install 'fsinbox[web]'", EXIT_USAGE
        ) from error
    path = chosen(inbox)
    with closing(Layout(path, create=False)) as layout:
        path = layout.path  # (a relative one would be looked for where the process is then)
    listener = _listen(host, port)
    where, port = listener.getsockname()[:2]
    everywhere = ip_address(where).is_unspecified
    names = {_named(name) for name in (*allow_host, *(() if everywhere else (host, where)))}
    rules = Rules(LOOPBACK | names, changes=allow_changes, private=private)
    shown = ("::1" if ":" in where else "127.0.0.1") if everywhere else where
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"http://{shown}:{port}/{f'?token={rules.token}' if rules.asks else ''}"

    def say_where() -> None:
        if not (ip_address(where).is_loopback or private):
            click.echo(
                f"fsinbox: whoever reaches {where} can read all of it: --private asks for the token first",
                err=True,
            )
        click.echo(f"fsinbox: showing {printable(path)} at {address}", err=True)

    serve(make_app(path, rules, Limits(max_age, max_waiting, max_failed)), listener, say_where)


def _named(host: str) -> str:
    """Return a name or an address as a request says it: an IPv6 address in brackets."""
    bare = host.lower().strip("[]")
    return f"[{bare}]" if ":" in bare else bare


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises Failure."""
    import socket

    from .exits import EXIT_UNUSABLE
    from .options import Failure

    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(100)
        return listener
    except OSError as error:
        if listener:
            listener.close()
        text = f"cannot listen on {host} port {port}: {error.strerror or error}: "
        raise Failure(
            text + "name another with --port (0: any that is free), or another --host", EXIT_UNUSABLE
        ) from error
