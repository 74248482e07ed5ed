"""One trace from a caller to the trainer, over real gRPC and a real redis-server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.intakes import intake_of
from support.processes import serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.process.grpc_tracing import ServerTracing, carried
from rewardloop.v1 import feedback_pb2_grpc
from rewardloop_client import AsyncRewardloopClient, Feedback, InvalidRequest, RewardloopClient
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.servicer import FeedbackServicer
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.tracing import TrainerTracing

RECORD = "rewardloop.v1.FeedbackService/Record"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """A process has one tracer provider, once and for all."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Callable[[], list[ReadableSpan]]]:
    exporter.clear()
    yield lambda: list(exporter.get_finished_spans())
    exporter.clear()


@asynccontextmanager
async def feedback(redis_url: str, *, is_traced: bool = True) -> AsyncIterator[str]:
    """The address of a FeedbackService."""
    client = connect_redis(redis_url)
    around = [ServerTracing()] if is_traced else []
    server = grpc.aio.server(interceptors=[*around, RewardloopInterceptor(ServerMetrics())])
    stream = FeedbackStream(client, ttl_s=60, carried=carried) if is_traced else FeedbackStream(client, ttl_s=60)
    metrics = ServerMetrics()
    intake = intake_of(stream, GenerationLog(client, ttl_s=60), metrics)
    servicer = FeedbackServicer(intake, Limits(), metrics, max_events=10)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    await client.aclose()


def until(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time given"
        time.sleep(0.02)


def consume_all(redis_url: str, directory: Path, tracing: TrainerTracing) -> list[str]:
    """Archive what the stream holds; returns the event ids in the ledger."""
    ledger = Ledger(directory / "ledger")
    with redis.Redis.from_url(redis_url) as client:
        consumer = Consumer(
            client, ledger, TrainerMetrics(), ConsumerSettings(flush_age_s=0.05, block_ms=20), tracing=tracing
        )
        stop = threading.Event()
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        until(consumer.drained)
        stop.set()
        thread.join(30)
    return ledger.event_ids()


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def event(name: str) -> Any:
    return Feedback.choice(prompt="p", responses=["a", "b"], chosen=0, rejected=1, event_id=name)


async def test_one_trace_leads_from_the_caller_to_the_archive(
    redis_url: str, tmp_path: Path, spans: Callable[[], list[ReadableSpan]]
) -> None:
    tracer = trace.get_tracer("application")
    async with feedback(redis_url) as address:

        def record() -> None:
            with tracer.start_as_current_span("checkout"), RewardloopClient(address, tracing=True) as client:
                client.record(event("one"))

        await asyncio.to_thread(record)
        async with AsyncRewardloopClient(address, tracing=True) as client:
            with tracer.start_as_current_span("another"):
                await client.record(event("two"))
    tracing = TrainerTracing()
    assert sorted(consume_all(redis_url, tmp_path, tracing)) == ["one", "two"]
    with tracing.in_round("reward", 3):
        pass

    made = spans()
    (checkout,), (another,) = named(made, "checkout"), named(made, "another")
    consumed = named(made, "consume")
    for root in (checkout, another):
        of_trace = {s.context.span_id: s for s in made if s.context.trace_id == root.context.trace_id}
        (last,) = [s for s in of_trace.values() if s.name == "consume"]
        path = [last]
        while path[-1].parent is not None:
            path.append(of_trace[path[-1].parent.span_id])
        assert [s.name for s in path] == ["consume", RECORD, RECORD, root.name]
        assert [s.kind.name for s in path] == ["CONSUMER", "SERVER", "CLIENT", "INTERNAL"]
    archives = named(made, "archive")
    linked = {link.context.span_id for archive in archives for link in archive.links}
    assert linked == {span.context.span_id for span in consumed}
    (learned,) = named(made, "round")
    assert {link.context.span_id for link in learned.links} == {span.context.span_id for span in archives}
    assert dict(learned.attributes or {}) == {"rewardloop.model": "reward", "rewardloop.round": 3}


async def test_spans_say_how_the_rpc_ended(redis_url: str, spans: Callable[[], list[ReadableSpan]]) -> None:
    async with feedback(redis_url) as address, AsyncRewardloopClient(address, tracing=True) as client:
        with pytest.raises(InvalidRequest):
            await client.record(Feedback.choice(prompt="p", responses=["a"], chosen=0, rejected=0, event_id="bad"))
        await asyncio.to_thread(until, lambda: len(named(spans(), RECORD)) == 2)
    codes = {span.kind.name: (span.attributes or {})["rpc.grpc.status_code"] for span in named(spans(), RECORD)}
    assert codes == dict.fromkeys(("CLIENT", "SERVER"), grpc.StatusCode.INVALID_ARGUMENT.value[0])


async def test_entries_sent_outside_of_any_trace_have_no_span_and_no_field(
    redis_url: str, tmp_path: Path, spans: Callable[[], list[ReadableSpan]]
) -> None:
    async with feedback(redis_url, is_traced=False) as address, AsyncRewardloopClient(address) as client:
        await client.record(event("plain"))
    with redis.Redis.from_url(redis_url) as client:
        ((_, fields),) = client.xrange("rewardloop:{feedback}:events")
    assert sorted(fields) == [b"event", b"id"]
    assert consume_all(redis_url, tmp_path, TrainerTracing()) == ["plain"]
    assert [span.name for span in spans()] == ["archive"]


def test_without_opentelemetry_everything_runs_and_only_tracing_is_refused() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None  # as if it were not installed\n"
        "import rewardloop_client, rewardloop_server.serving, rewardloop_trainer.daemon\n"
        "from rewardloop.process.tracing import start_tracing\n"
        "assert start_tracing('rewardloop', '') is False\n"
        "start_tracing('rewardloop', 'http://127.0.0.1:4318')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pip install 'rewardloop[tracing]'" in done.stderr


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []  # the service's name, and the span
        collector = self

        class Post(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collector.spans += [(names["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Post)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_a_serving_process_sends_the_stages_of_a_score_to_the_collector(
    tmp_path: Path,
    redis_url: str,
    collector: Collector,
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    arguments = ("--tracing-endpoint", collector.endpoint, "--log-format", "json", "--log-level", "debug")
    with serving(tmp_path / "models", redis_url, tmp_path / "serve.log", *arguments) as server:
        with RewardloopClient(server.address, tracing=True) as client:
            client.score("alpha", ["beta", "gamma"])
        assert server.terminate() == 0  # what it still holds is sent before it ends
    (called,) = named(spans(), "rewardloop.v1.RewardService/Score")
    trace_id = called.context.trace_id.to_bytes(16)
    of_trace = {span.name: span for service, span in collector.spans if span.trace_id == trace_id}
    assert set(of_trace) == {"rewardloop.v1.RewardService/Score", "tokenize", "queue", "run"}
    assert {service for service, _ in collector.spans} == {"rewardloop-server"}
    whole = of_trace["rewardloop.v1.RewardService/Score"]
    assert whole.parent_span_id == called.context.span_id.to_bytes(8)
    assert [each.name for each in whole.events] == ["validated"]
    ends = [whole.start_time_unix_nano]
    for name in ("tokenize", "queue", "run"):
        assert of_trace[name].parent_span_id == whole.span_id
        assert of_trace[name].start_time_unix_nano >= ends[-1] - 1_000_000  # clocks differ by less than a millisecond
        ends.append(of_trace[name].end_time_unix_nano)
    assert f'"trace_id": "{trace_id.hex()}"' in (tmp_path / "serve.log").read_text()
