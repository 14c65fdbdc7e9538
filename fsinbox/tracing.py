"""A trace that goes on from whoever adds an element to whoever handles it, with OpenTelemetry.

    import fsinbox.tracing
    fsinbox.tracing.instrument()        # in a producer: each add is a span, whose context goes with the
                                        element
    $ fsinbox consume --trace ...       # in the consumer: each handling is a span, a child of that one

The context travels on the payload's file, as extended attributes: `user.fsinbox.traceparent`, and
`user.fsinbox.tracestate` if there is one, as W3C Trace Context has their texts. So the newest value of a key
brings its own producer's trace, and one who only has mv(1) may set them with setfattr(1). Where the file
system has no extended attributes there is no context.

Whoever imports this needs opentelemetry-api. Where spans go is for the application to set up
(opentelemetry-sdk).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .store import adding
from .store.folders import close_quietly
from .store.layout import Layout

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError(f"tracing needs OpenTelemetry ({error}): pip install 'fsinbox[tracing]'") from error

PREFIX = "user.fsinbox."
_NAMES = ("traceparent", "tracestate")

_LONGEST = 1024
"""Bytes of an attribute that are believed: a traceparent has 55, and of a tracestate 512 must be passed
on."""

_FORMAT = TraceContextTextMapPropagator()  # not the process's own: the format is the inbox's

_TRACER = trace.get_tracer("fsinbox")


def instrument() -> None:
    """From now on each add of this process is a span, whose context goes with the element."""
    adding.observer = _Tracer()


def uninstrument() -> None:
    """End what instrument() began."""
    adding.observer = None


def producer_of(fd: int) -> Context | None:
    """Return the context that an element's open file carries, or None. It is not trusted: anyone may have set
    it."""
    carrier = {}
    for name in _NAMES:
        try:
            text = os.getxattr(fd, PREFIX + name)
        except (OSError, AttributeError):  # none there; none on this file system; none on this system
            continue
        if len(text) <= _LONGEST:
            carrier[name] = text.decode("ascii", "replace")
    context = _FORMAT.extract(carrier, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def here() -> dict[str, str]:
    """Return the current context as W3C Trace Context: traceparent, and tracestate if there is one. Empty if
    there is none."""
    carrier: dict[str, str] = {}
    _FORMAT.inject(carrier)
    return {name: carrier[name] for name in _NAMES if carrier.get(name)}


def destination(inbox: str) -> dict[str, str]:
    """Return the attributes of every span: OpenTelemetry's conventions for messaging."""
    return {"messaging.system": "fsinbox", "messaging.destination.name": shown(inbox)}


def shown(key: str) -> str:
    """Return a key as an attribute's value: text, whatever bytes it was made of."""
    return key.encode("utf-8", "backslashreplace").decode()


def _label(layout: Layout, temporary: str) -> None:
    """Leave the current context on a file in tmp/. It is less than the element: what cannot be done is
    left."""
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.folder("tmp"))
    except OSError:
        return
    try:
        for name, text in here().items():
            os.setxattr(fd, PREFIX + name, text.encode())
    except (OSError, AttributeError):
        pass
    finally:
        close_quietly(fd)


class _Tracer:
    """Makes a span of each add."""

    def adding(self, path: str, key: str | None, run: Callable[[], Any]) -> Any:
        attributes = {**destination(path), **_OPERATION}
        if key is not None:
            attributes["fsinbox.key"] = shown(str(key))
        with _TRACER.start_as_current_span(
            "fsinbox add", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            outcome = run()
            if key is not None:
                span.set_attribute("fsinbox.outcome", outcome)
            else:
                span.set_attribute("messaging.batch.message_count", sum(outcome.values()))
            return outcome

    def publishing(self, layout: Layout, temporary: str) -> None:
        _label(layout, temporary)


_OPERATION = {"messaging.operation.type": "send", "messaging.operation.name": "add"}
