"""The blocking client."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from rewardloop.v1 import feedback_pb2, model_pb2, reward_pb2
from rewardloop_client import _calls as calls
from rewardloop_client import _convert as convert
from rewardloop_client._access import TLS, Access, Token
from rewardloop_client._call_rules import CallRules
from rewardloop_client._channel import ChannelTransport
from rewardloop_client._connection import Connection, tracing_interceptors
from rewardloop_client._deadline import bounded
from rewardloop_client._errors import RewardloopError
from rewardloop_client._hedge import Hedging
from rewardloop_client._observe import Observer, observed
from rewardloop_client._retry import Attempts, Call, Pause, Send, Steps, steps_of
from rewardloop_client._types import (
    Generation,
    LaneName,
    Promotion,
    PromptLike,
    RecordResult,
    ScoreResult,
    SelectionName,
    TruncationName,
    VersionInfo,
)

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Interceptor: TypeAlias = "grpc.UnaryUnaryClientInterceptor[Any, Any] | grpc.StreamStreamClientInterceptor[Any, Any]"


class Transport(Protocol):
    """Carries messages: over gRPC, or to the fake in this process. All methods raise RewardloopError."""

    def unary(self, send: Send) -> Message: ...
    def stream(
        self, path: str, requests: Iterator[Message], response_type: type[M], timeout_s: float | None
    ) -> Generator[M, None, None]: ...
    def sleep(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class RewardloopClient:
    """Calls the services and waits. Safe to share between threads; closes as a context manager or by `close`.

    ``addresses``: "host:port" or several, or a name ("dns:///...", "xds:///..."), over which calls are spread.
    ``timeout_s``: seconds that one call may take, all its attempts together; each method takes its own, and a
    `deadline` around the call bounds both. ``max_attempts``: tries of a call that is safe to repeat. ``lane``:
    "production", or "trainer" to stand behind production in the server's queue. ``hedging``: ask another replica when a
    `score` is slow. ``connection``: channels, keepalive, who retries. ``observer``: is told of every call that ended,
    `rewardloop_client.metrics.PrometheusCalls()` for one. ``interceptors``: gRPC's own. ``tracing``: each
    attempt is a span of the application's OpenTelemetry tracer, and the server's spans are its children.
    ``tls``: True, or which authorities and certificates. ``token``: the caller's, as `str`, as the `Path` of a file
    with it, which is read again when it changes, or as a function that returns it; ``insecure_token`` lets it go
    elsewhere than to loopback without TLS. Every method raises a subclass of RewardloopError; InvalidAccess is raised
    for a file of these that cannot be used.
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = "127.0.0.1:50051",
        *,
        timeout_s: float = 10.0,
        max_attempts: int = 4,
        lane: LaneName = "production",
        hedging: Hedging | None = None,
        connection: Connection | None = None,
        observer: Observer | None = None,
        interceptors: Sequence[Interceptor] = (),
        tracing: bool = False,
        tls: TLS | bool = False,
        token: Token | None = None,
        insecure_token: bool = False,
    ) -> None:
        around = [*(tracing_interceptors() if tracing else ()), *interceptors]
        access = Access(tls, token, insecure_token=insecure_token)
        self._rules = rules = CallRules.of(timeout_s, max_attempts, lane, connection, observer)
        self._transport: Transport = ChannelTransport(addresses, access, connection, rules, hedging, around)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls in flight end with an error."""
        self._transport.close()

    def score(
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        *,
        truncation: TruncationName = "allowed",
        pin_version: str | None = None,
        min_version: int | None = None,
        lane: LaneName | None = None,
        timeout_s: float | None = None,
    ) -> ScoreResult:
        """Score one prompt with its responses, all by one model version."""
        request = convert.score_request(
            prompt,
            responses,
            truncation=truncation,
            pin_version=pin_version,
            min_version=min_version,
            lane=lane or self._rules.lane,
        )
        return self._run(calls.score(request), timeout_s)

    def score_batch(
        self, groups: Iterable[calls.GroupLike], *, lane: LaneName | None = None, timeout_s: float | None = None
    ) -> list[ScoreResult | RewardloopError]:
        """Score many groups in one call: a result or an error for each, in order."""
        rules = self._rules
        return self._drive(calls.score_batch(groups, lane or rules.lane, rules.policy, rules.limit(timeout_s)))

    def score_stream(
        self,
        groups: Iterable[calls.GroupLike],
        *,
        lane: LaneName | None = None,
        timeout_s: float | None = None,
        max_in_flight: int = 64,
    ) -> Iterator[ScoreResult | RewardloopError]:
        """Score groups as they come, pipelined: a result or an error for each, in order.

        At most ``max_in_flight`` groups are sent whose outcome was not yet taken. ``timeout_s`` bounds the whole
        stream; None: no bound. A stream that breaks after its first reply raises. ``groups`` is read in another
        thread; what it raises comes out here, after the outcomes of what was sent.
        """
        ids = calls.StreamIds(lane or self._rules.lane)
        room = threading.Semaphore(max_in_flight)
        closed = threading.Event()
        failure: list[Exception] = []

        def requests() -> Iterator[Message]:
            try:
                for group in groups:
                    room.acquire()
                    if closed.is_set():
                        return
                    if (request := ids.request(group)) is not None:
                        yield request
                    else:
                        room.release()
            except Exception as error:  # gRPC would only log it, in its own thread
                failure.append(error)

        replies = self._transport.stream(
            calls.SCORE_STREAM, requests(), reward_pb2.ScoreStreamResponse, bounded(timeout_s)
        )
        try:
            for reply in replies:
                ids.take(reply)
                for outcome in ids.due():
                    yield outcome
                    room.release()
            yield from ids.due()
            if failure:
                raise failure[0]
            ids.check_all_answered()
        finally:
            closed.set()
            room.release()
            replies.close()

    def record(self, event: feedback_pb2.FeedbackEvent, *, timeout_s: float | None = None) -> RecordResult:
        """Record one signal; returns once it is durable. Make events with `Feedback`."""
        return self._run(calls.record(event), timeout_s)

    def record_batch(
        self, events: Iterable[feedback_pb2.FeedbackEvent], *, timeout_s: float | None = None
    ) -> list[RecordResult | RewardloopError]:
        """Record many signals: a result or an error for each, in order. Only what may still pass is sent again."""
        return self._drive(calls.record_batch(events, self._rules.policy, self._rules.limit(timeout_s)))

    def generate(
        self,
        prompt: PromptLike,
        *,
        candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        max_new_tokens: int = 0,
        best_of: int = 0,
        selection: SelectionName | None = None,
        random_share: float | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Candidates from the live policy. None and 0 leave a setting to the server.

        ``best_of``: sample and score so many, and show ``candidates`` of them: by ``selection`` the best (as by
        default), the pair whose comparison tells the reward model most, where a ``random_share`` is drawn uniformly
        instead, or any.
        """
        request = convert.generate_request(
            prompt,
            candidates=candidates,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_new_tokens=max_new_tokens,
            best_of=best_of,
            selection=selection,
            random_share=random_share,
        )
        return self._run(calls.generate(request), timeout_s)

    def list_versions(self, model: str, *, timeout_s: float | None = None) -> list[VersionInfo]:
        """Every version of "reward" or "policy" in the store, newest first."""
        return self._run(calls.list_versions(model), timeout_s)

    def get_version(self, model: str, version: str = "", *, timeout_s: float | None = None) -> VersionInfo:
        """One version with its manifest; "" is the active one."""
        return self._run(calls.get_version(model, version), timeout_s)

    def promote(
        self, model: str, version: str, *, reason: str = "", leader_epoch: int = 0, timeout_s: float = 120.0
    ) -> Promotion:
        """Make a version active; returns once the server serves it.

        ``leader_epoch``: of a trainer that asks as the leader; raises Overtaken when a later one's promotion was taken.
        """
        return self._run(calls.promote(model, version, reason, leader_epoch), timeout_s)

    def rollback(self, model: str, *, reason: str = "", timeout_s: float = 120.0) -> Promotion:
        """Go back to the version that was active before. Never retried."""
        return self._run(calls.rollback(model, reason), timeout_s)

    def set_canary(
        self, model: str, version: str | None, *, share: float = 0.0, reason: str = "", timeout_s: float = 120.0
    ) -> VersionInfo | None:
        """Give a version a ``share``, above 0 and below 1, of the requests; None ends the canary, and is returned then.

        Which version scores a request depends only on its prompt. Promotions and rollbacks end it.
        """
        return self._run(calls.set_canary(model, version or "", share, reason), timeout_s)

    def set_shadow(
        self, model: str, version: str | None, *, share: float = 0.0, reason: str = "", timeout_s: float = 120.0
    ) -> VersionInfo | None:
        """Score a ``share``, above 0 and at most 1, of the requests with a version too, to compare in the server's
        metrics; None ends the shadow, and is returned then. Promotions and rollbacks end it.
        """
        return self._run(calls.set_shadow(model, version or "", share, reason), timeout_s)

    def watch_versions(self, model: str, *, timeout_s: float | None = None) -> Iterator[VersionInfo]:
        """The active version now, then again after every change. A broken connection is opened again.

        ``timeout_s`` bounds the whole watch, which then ends with DeadlineExceeded; None: no bound.
        """
        attempts = Attempts(self._rules.policy, bounded(timeout_s))
        while True:
            request = model_pb2.WatchVersionsRequest(model=model)
            replies = self._transport.stream(
                calls.WATCH_VERSIONS, iter([request]), model_pb2.WatchVersionsResponse, attempts.remaining_s()
            )
            try:
                with closing(replies):
                    for reply in replies:
                        attempts.restart()
                        yield convert.version_info(reply.active)
                return
            except RewardloopError as error:
                self._transport.sleep(attempts.pause_after(error, was_seen_by_grpc=False))

    def wait_until_active(self, model: str, version: str, timeout_s: float = 60.0) -> VersionInfo:
        """Wait until the server serves ``version``. Raises DeadlineExceeded."""
        return self._drive(calls.wait_until_active(model, version, self._rules.limit(timeout_s)))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the service takes requests; it does not before its model is warm, nor while draining.

        ``service`` such as "rewardloop.v1.RewardService"; "" is the whole process.
        Raises NotFound for a service that the server does not know.
        """
        return self._run(calls.health(service), timeout_s)

    def _run(self, call: Call[T], timeout_s: float | None) -> T:
        return self._drive(steps_of(call, self._rules.policy, self._rules.limit(timeout_s)))

    def _drive(self, steps: Steps[T]) -> T:
        steps = observed(steps, self._rules.observer)
        answer: Message | RewardloopError | None = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, RewardloopError) else steps.send(answer)
                answer = self._carry_out(step)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()

    def _carry_out(self, step: Send | Pause) -> Message | RewardloopError | None:
        if isinstance(step, Pause):
            self._transport.sleep(step.seconds)
            return None
        try:
            return self._transport.unary(step)
        except RewardloopError as error:
            return error
