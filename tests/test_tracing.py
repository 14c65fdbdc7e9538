"""A trace from producer to handler: real spans, collected by OpenTelemetry's own SDK, in this process and
across two."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import command, environment, run
from usual import take

from fsinbox import AddFailed, Inbox, Reject, TryLater
from fsinbox.worker.commands import CommandHandler
from fsinbox.worker.functions import FunctionHandler
from fsinbox.worker.runner import Runner

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fsinbox import tracing
from fsinbox.worker.tracing import Traced

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Collects the spans of this process, in which a provider can be set but once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    tracing.uninstrument()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.fsinbox.probe", b"1")
    except OSError as error:
        pytest.skip(f"no extended attributes in {tmp_path}: {error}")
    with Inbox(tmp_path / "inbox", max_inflight=3) as inbox:
        yield inbox


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def only(spans: InMemorySpanExporter, name: str) -> Any:
    (span,) = named(spans, name)
    return span


def ids(span: Any) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def attribute(inbox: Inbox, folder: str = "pending", name: str = "traceparent") -> str:
    (file,) = Path(inbox.path, folder).glob("[0-9]*")
    return os.getxattr(file, f"user.fsinbox.{name}").decode()


def handled(inbox: Inbox, function: Any, **options: Any) -> Runner:
    """Drain the inbox with a traced function."""
    handler = function if isinstance(function, CommandHandler) else FunctionHandler("f", function)
    runner = Runner(inbox, Traced(handler, inbox.path), drain=True, **options)
    runner.run()
    return runner


# --- the producer -------------------------------------------------------------------------------------


def test_each_kind_of_add_is_a_span_whose_context_is_on_the_file(
    inbox: Inbox, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    (tmp_path / "copied").write_text("1")
    (tmp_path / "moved").write_text("1")
    tracing.instrument()
    tracing.instrument()  # once is enough
    adds: list[Any] = [
        lambda: inbox.add("k", 1),
        lambda: inbox.add_bytes("k", b"1"),
        lambda: inbox.add_file("k", tmp_path / "copied"),
        lambda: inbox.add_file("k", tmp_path / "moved", move=True),
        lambda: inbox.add_stream("k", io.BytesIO(b"1")),
        lambda: inbox.add_many([("k", 1)]),
    ]
    for add in adds:
        spans.clear()
        add()
        span = only(spans, "fsinbox add")
        assert span.kind is SpanKind.PRODUCER
        assert attribute(inbox)[:52] == "00-{:032x}-{:016x}".format(*ids(span))
        assert span.attributes["messaging.system"] == "fsinbox"
        assert span.attributes["messaging.operation.type"] == "send"
        assert span.attributes["messaging.destination.name"] == inbox.path
        if add is adds[-1]:
            assert span.attributes["messaging.batch.message_count"] == 1
        else:
            assert span.attributes["fsinbox.key"] == "k"
            assert span.attributes["fsinbox.outcome"] == ("new" if add is adds[0] else "replaced")


def test_an_add_is_part_of_the_trace_around_it(inbox: Inbox, spans: InMemorySpanExporter) -> None:
    tracing.instrument()
    with trace.get_tracer("test").start_as_current_span("request") as around:
        inbox.add("k", 1)
    span = only(spans, "fsinbox add")
    assert span.parent.span_id == around.get_span_context().span_id


def test_an_add_that_fails_is_an_error(inbox: Inbox, spans: InMemorySpanExporter, tmp_path: Path) -> None:
    tracing.instrument()
    with pytest.raises(AddFailed):
        inbox.add_file("k", tmp_path / "none")

    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "broken")

    with pytest.raises(AddFailed):
        inbox.add_stream("k", Broken())  # type: ignore[arg-type]
    span = only(spans, "fsinbox add")
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_without_instrument_there_is_neither_a_span_nor_an_attribute(
    inbox: Inbox, spans: InMemorySpanExporter
) -> None:
    tracing.instrument()
    tracing.uninstrument()
    with trace.get_tracer("test").start_as_current_span("request"):
        inbox.add("k", 1)
    assert not named(spans, "fsinbox add")
    with pytest.raises(OSError):
        attribute(inbox)


def test_a_file_system_without_attributes_takes_the_value_all_the_same(
    inbox: Inbox, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing.instrument()
    with monkeypatch.context() as patch:
        patch.delattr(os, "setxattr")  # as on macOS
        patch.delattr(os, "getxattr")
        inbox.add("a", 1)
        handled(inbox, lambda key, value: None)
        assert only(spans, "fsinbox consume").parent is None
    tracing._label(inbox.layout, "gone")  # a draft that somebody has removed
    assert len(inbox) == 0


# --- the consumer -------------------------------------------------------------------------------------


def test_the_handling_is_a_child_of_the_add_and_its_context_is_active_in_the_handler(
    inbox: Inbox, spans: InMemorySpanExporter
) -> None:
    active = []

    def handle(key: str, value: object) -> None:
        with trace.get_tracer("test").start_as_current_span("inner"):
            active.append(threading.current_thread() is not threading.main_thread())

    tracing.instrument()
    inbox.add("k\udcff", 1)
    seq = next(iter(inbox)).seq
    handled(inbox, handle)
    add, span, inner = only(spans, "fsinbox add"), only(spans, "fsinbox consume"), only(spans, "inner")
    assert span.kind is SpanKind.CONSUMER
    assert (span.parent.trace_id, span.parent.span_id) == ids(add)
    assert [ids(link) for link in span.links] == [ids(add)]
    assert (inner.parent.trace_id, inner.parent.span_id) == ids(span)
    assert active == [True]
    assert dict(span.attributes) == {
        "messaging.system": "fsinbox",
        "messaging.destination.name": inbox.path,
        "messaging.operation.type": "process",
        "messaging.operation.name": "consume",
        "messaging.message.id": str(seq),
        "messaging.message.body.size": 1,
        "fsinbox.key": "k\\udcff",
        "fsinbox.seq": seq,
        "fsinbox.consumer.attempts": 1,
        "fsinbox.outcome": "done",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_the_context_is_active_in_an_async_handler(inbox: Inbox, spans: InMemorySpanExporter) -> None:
    async def handle(key: str, value: object) -> None:
        with trace.get_tracer("test").start_as_current_span(f"inner {key}"):
            pass

    tracing.instrument()
    inbox.add("a", 1)
    inbox.add("b", 1)
    handled(inbox, handle, concurrency=2)
    for key in "ab":
        (span,) = [
            span for span in named(spans, "fsinbox consume") if (span.attributes or {})["fsinbox.key"] == key
        ]
        assert only(spans, f"inner {key}").parent.span_id == ids(span)[1]


def test_what_a_handler_adds_goes_on_with_the_trace(
    inbox: Inbox, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    with Inbox(tmp_path / "next") as following:
        inbox.add("a", 1)
        tracing.instrument()
        handled(inbox, lambda key, value: following.add("b", 2))
        assert attribute(following).split("-")[1] == f"{ids(only(spans, 'fsinbox consume'))[0]:032x}"


def test_a_replaced_value_carries_the_trace_of_the_newer_producer(
    inbox: Inbox, spans: InMemorySpanExporter
) -> None:
    tracing.instrument()
    inbox.add("k", 1)
    inbox.add("k", 2)
    older, newer = named(spans, "fsinbox add")
    handled(inbox, lambda key, value: None)
    assert only(spans, "fsinbox consume").parent.span_id == ids(newer)[1] != ids(older)[1]


FAILURES = {
    "an exception": (ValueError("no\nmore"), "retry", "ValueError: no", "ValueError", StatusCode.ERROR),
    "a chain": (RuntimeError("x"), "retry", "RuntimeError: x", "RuntimeError", StatusCode.ERROR),
    "a rejection": (
        Reject("bad"),
        "reject",
        "rejected: bad",
        "fsinbox.store.errors.Reject",
        StatusCode.ERROR,
    ),
    "not now": (TryLater("busy"), "later", None, None, StatusCode.UNSET),
}


@pytest.mark.parametrize(("raised", "outcome", "message", "kind", "status"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_an_error_with_its_exception(
    inbox: Inbox,
    spans: InMemorySpanExporter,
    raised: Exception,
    outcome: str,
    message: str,
    kind: str,
    status: StatusCode,
) -> None:
    def fail(key: str, value: object) -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise raised from (first if isinstance(raised, RuntimeError) else None)

    inbox.add("k", 1)
    element = take(inbox)
    assert Traced(FunctionHandler("f", fail), inbox.path).handle(element).kind == outcome
    span = only(spans, "fsinbox consume")
    assert span.status.status_code is status
    assert span.attributes["fsinbox.outcome"] == outcome
    assert span.attributes.get("error.type") == kind
    if kind is None:
        assert span.events == ()
        return
    (event,) = span.events
    assert event.name == "exception"
    assert (event.attributes["exception.message"], event.attributes["exception.type"]) == (message, kind)
    assert event.attributes["exception.stacktrace"].startswith("Traceback")


def test_a_payload_that_cannot_be_decoded_is_an_error_without_a_type(
    inbox: Inbox, spans: InMemorySpanExporter
) -> None:
    inbox.add_bytes("k", b"{")
    handled(inbox, lambda key, value: None)
    span = only(spans, "fsinbox consume")
    assert span.attributes["error.type"] == "reject"
    assert "exception.type" not in span.events[0].attributes


def test_an_element_whose_file_is_gone_has_no_producer_and_the_handler_says_so(
    inbox: Inbox, spans: InMemorySpanExporter
) -> None:
    inbox.add("k", 1)
    element = take(inbox)
    os.unlink(element.path)
    assert Traced(FunctionHandler("f", lambda key, value: None), inbox.path).handle(element).kind == "retry"
    assert only(spans, "fsinbox consume").parent is None


def test_to_stop_now_is_passed_on(inbox: Inbox, spans: InMemorySpanExporter) -> None:
    stopped = []
    handler = FunctionHandler("f", lambda key, value: None)
    handler.stop_now = lambda: stopped.append(True)  # type: ignore[method-assign]
    Traced(handler, inbox.path).stop_now()
    assert stopped == [True]


HOSTILE = {
    "none": {},
    "no text": {"traceparent": b"\xff\xfe\0"},
    "not of the form": {"traceparent": b"00-zz-b7ad6b7169203331-01"},
    "zero": {"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01".encode()},
    "too long": {"traceparent": PARENT.encode() + b"-" + b"a" * 2000},
    "only a state": {"tracestate": b"a=1"},
}


@pytest.mark.parametrize("attributes", HOSTILE.values(), ids=HOSTILE)
def test_an_attribute_that_is_no_context_is_as_none(
    inbox: Inbox, spans: InMemorySpanExporter, attributes: dict[str, bytes]
) -> None:
    inbox.add("k", 1)
    element = take(inbox)
    for name, text in attributes.items():
        os.setxattr(element.path, f"user.fsinbox.{name}", text)
    assert Traced(FunctionHandler("f", lambda key, value: None), inbox.path).handle(element).kind == "done"
    span = only(spans, "fsinbox consume")
    assert span.parent is None and span.links == ()


@pytest.mark.parametrize(("state", "kept"), [("a=1,b=2", True), ("a" * 3000, False), ("=,,=\udcff", False)])
def test_a_shell_sets_the_context_with_setfattr_and_a_command_finds_it_in_its_environment(
    inbox: Inbox, spans: InMemorySpanExporter, tmp_path: Path, state: str, kept: bool
) -> None:
    (tmp_path / "draft").write_text("1")
    os.setxattr(tmp_path / "draft", "user.fsinbox.traceparent", PARENT.encode())
    os.setxattr(tmp_path / "draft", "user.fsinbox.tracestate", os.fsencode(state))
    (tmp_path / "draft").rename(Path(inbox.path, "drop/k"))
    line = f'echo "$TRACEPARENT $TRACESTATE" >{tmp_path}/seen'
    handled(inbox, CommandHandler(line, shell=True))
    span = only(spans, "fsinbox consume")
    seen = (tmp_path / "seen").read_text().rstrip("\n").split(" ", 1)
    assert seen == [f"00-{TRACE}-{ids(span)[1]:016x}-01", state if kept else ""]
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


# --- across processes ---------------------------------------------------------------------------------

EXPORT = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

file = open("spans", "a")
provider = TracerProvider()
exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""


def test_from_a_producer_s_process_to_a_consumer_s(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "exporting.py").write_text(EXPORT)
    (tmp_path / "jobs.py").write_text("import exporting\ndef job(key, value):\n    raise ValueError(value)\n")
    code = (
        "import exporting, fsinbox.tracing\nfsinbox.tracing.instrument()\nfsinbox.Inbox('inbox').add('k', 1)"
    )
    here = environment()
    here["PYTHONPATH"] += os.pathsep + str(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, check=True)
    run(
        "consume",
        "--handler",
        "jobs:job",
        "--drain",
        "--trace",
        "--max-attempts",
        "1",
        cwd=tmp_path,
        status=1,
    )
    add, consumed = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    assert (add["name"], consumed["name"]) == ("fsinbox add", "fsinbox consume")
    assert consumed["parent_id"] == add["context"]["span_id"]
    assert consumed["context"]["trace_id"] == add["context"]["trace_id"]
    assert consumed["status"] == {"status_code": "ERROR", "description": "ValueError: 1"}


def test_a_command_gets_the_trace_from_a_consumer_without_any_sdk(inbox: Inbox, tmp_path: Path) -> None:
    """There are no spans then, but the producer's context goes on."""
    inbox.add("k", 1)
    (file,) = Path(inbox.path, "pending").glob("[0-9]*")
    os.setxattr(file, "user.fsinbox.traceparent", PARENT.encode())
    done = run("consume", "--exec", "printenv TRACEPARENT", "--drain", "--trace", cwd=tmp_path)
    assert done.stdout == PARENT + "\n"


@pytest.mark.parametrize("words", [("--handler", "jobs:job"), ("--exec", "true")])
def test_without_trace_nothing_of_opentelemetry_is_imported(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "jobs.py").write_text("def job(key, value): ...\n")
    code = (
        "import sys, fsinbox\n"
        "from fsinbox.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['fsinbox', *line.split('|')]\n"
        "    try:\n        main()\n    except SystemExit as ended:\n        assert not ended.code, "
        "ended.code\n"
        "    assert not any(name.startswith('opentelemetry') for name in sys.modules), line\n"
    )
    lines = ["init", "add|k|1", "status", "|".join(["consume", *words, "--drain"])]
    subprocess.run(
        [sys.executable, "-c", code, *lines], cwd=tmp_path, env=environment(), check=True, capture_output=True
    )


def test_tracing_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('No module named opentelemetry')\n")
    here = environment()
    here["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{here['PYTHONPATH']}"
    words = command("consume", "--exec", "true", "--drain", "--trace")
    done = subprocess.run(words, cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'fsinbox[tracing]'" in done.stderr
    assert "Traceback" not in done.stderr
