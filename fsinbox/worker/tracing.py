"""A span for each element that is handled, in the trace of whoever added it: `fsinbox consume --trace`."""

from __future__ import annotations

from typing import cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from ..element import Element
from ..store.errors import InboxError
from ..store.folders import close_quietly
from ..tracing import destination, here, producer_of, shown
from .commands import CommandHandler
from .outcome import BatchHandler, Handler, Outcome

_TRACEBACK = "Traceback (most recent call last):\n"


class Traced:
    """A handler that has another one do the work, in a span each."""

    def __init__(self, handler: Handler, inbox: str) -> None:
        """`inbox`: the path that names it in the spans."""
        self.name = handler.name
        self.interrupt = handler.interrupt
        self.interruptible = handler.interruptible
        self.began = handler.began
        self._handler = handler
        self._tracer = trace.get_tracer("fsinbox")
        self._attributes = {
            **destination(inbox),
            "messaging.operation.type": "process",
            "messaging.operation.name": "consume",
        }
        if isinstance(handler, CommandHandler):
            handler.more_environment = _environment

    def handle(self, element: Element) -> Outcome:
        producer = _producer(element)
        with self._tracer.start_as_current_span(
            "fsinbox consume",
            context=producer or Context(),
            kind=SpanKind.CONSUMER,
            links=[Link(trace.get_current_span(producer).get_span_context())] if producer else [],
            attributes={
                **self._attributes,
                "messaging.message.id": str(element.seq),
                "messaging.message.body.size": element.size,
                "fsinbox.key": shown(element.key),
                "fsinbox.seq": element.seq,
                "fsinbox.consumer.attempts": element.attempts,
            },
        ) as span:
            outcome = self._handler.handle(element)
            _note(span, outcome)
            return outcome

    def handle_batch(self, elements: list[Element]) -> Outcome:
        producers = [producer for element in elements if (producer := _producer(element))]
        with self._tracer.start_as_current_span(
            "fsinbox consume",
            context=Context(),
            kind=SpanKind.CONSUMER,
            links=[Link(trace.get_current_span(producer).get_span_context()) for producer in producers],
            attributes={**self._attributes, "messaging.batch.message_count": len(elements)},
        ) as span:
            outcome = cast(BatchHandler, self._handler).handle_batch(elements)
            _note(span, outcome)
            return outcome

    def stop_now(self) -> None:
        self._handler.stop_now()


def _producer(element: Element) -> Context | None:
    try:
        fd = element.open()
    except (OSError, InboxError):
        return None  # the handler will say so
    try:
        return producer_of(fd)
    finally:
        close_quietly(fd)


def _environment() -> dict[str, str]:
    """Return what a command finds of the trace in its environment: TRACEPARENT, TRACESTATE."""
    return {name.upper(): text for name, text in here().items()}


def _note(span: Span, outcome: Outcome) -> None:
    span.set_attribute("fsinbox.outcome", outcome.kind)
    if outcome.kind not in ("retry", "reject"):
        return
    summary = shown(outcome.summary)
    event = {"exception.message": summary, "exception.stacktrace": shown(outcome.detail)}
    raised = _type_raised(outcome.detail)
    if raised:
        event["exception.type"] = raised
    span.set_attribute("error.type", raised or outcome.kind)
    span.add_event("exception", event)
    span.set_status(Status(StatusCode.ERROR, summary))


def _type_raised(detail: str) -> str:
    """Return the name of the exception that a traceback ends with; "" if there is no traceback."""
    _, found, last = detail.rpartition(_TRACEBACK)
    text = next((line for line in last.splitlines() if line and not line[0].isspace()), "") if found else ""
    return text.partition(":")[0]
