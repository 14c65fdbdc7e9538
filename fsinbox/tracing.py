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
from functools import wraps
from typing import Any

from .inbox import Inbox
from .store import files
from .store.layout import Layout, close_quietly

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

_original: dict[str, Callable[..., Any]] = {}


def instrument() -> None:
    """From now on each add of this process is a span, and its context goes with the element. Once is
    enough."""
    if not _original:
        _original.update(_add=Inbox._add, add_many=Inbox.add_many)
        Inbox._add = _traced_add(Inbox._add)  # type: ignore[method-assign]
        Inbox.add_many = _traced_add_many(Inbox.add_many)  # type: ignore[method-assign]
        files.label = _label


def uninstrument() -> None:
    """End what instrument() began."""
    for name, method in _original.items():
        setattr(Inbox, name, method)
    _original.clear()
    files.label = None


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


def _traced_add(add: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(add)
    def traced(self: Inbox, key: str, payload: Any, durable: bool | None) -> Any:
        attributes = {**destination(self.path), **_OPERATION, "fsinbox.key": shown(str(key))}
        with _TRACER.start_as_current_span(
            "fsinbox add", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            outcome = add(self, key, payload, durable)
            span.set_attribute("fsinbox.outcome", outcome)
            return outcome

    return traced


def _traced_add_many(add_many: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(add_many)
    def traced(self: Inbox, *arguments: Any, **options: Any) -> Any:
        attributes = {**destination(self.path), **_OPERATION}
        with _TRACER.start_as_current_span(
            "fsinbox add", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            total = add_many(self, *arguments, **options)
            span.set_attribute("messaging.batch.message_count", sum(total.values()))
            return total

    return traced


_OPERATION = {"messaging.operation.type": "send", "messaging.operation.name": "add"}
