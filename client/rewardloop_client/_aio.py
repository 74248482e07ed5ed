"""The asyncio client. It has the methods of the blocking client, as coroutines and asynchronous iterators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Protocol, Self, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from rewardloop.v1 import feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client import _calls as calls
from rewardloop_client import _convert as convert
from rewardloop_client._access import TLS, Access, Token
from rewardloop_client._call_rules import CallRules
from rewardloop_client._channel import AioChannelTransport
from rewardloop_client._connection import Connection, aio_tracing_interceptors
from rewardloop_client._deadline import bounded
from rewardloop_client._errors import InvalidReply, RewardloopError
from rewardloop_client._hedge import Hedging
from rewardloop_client._observe import Observer, observed
from rewardloop_client._retry import Attempts, Call, Pause, Send, Steps, steps_of
from rewardloop_client._types import (
    CandidateText,
    ErasureProgress,
    Generation,
    Identity,
    LaneName,
    Promotion,
    PromptLike,
    RecordResult,
    ScoreResult,
    SelectionName,
    TaughtVersions,
    TruncationName,
    VersionInfo,
)
from rewardloop_client.labelling.aio import AsyncLabelling
from rewardloop_client.operations.service import AsyncOperations

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Interceptor: TypeAlias = grpc.aio.ClientInterceptor


class AioTransport(Protocol):
    """Carries messages over gRPC, or to the fake in this process. Every method raises RewardloopError."""

    async def unary(self, send: Send) -> Message: ...
    def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[M], timeout_s: float | None
    ) -> AsyncGenerator[M, None]: ...
    async def sleep(self, seconds: float) -> None: ...
    async def close(self) -> None: ...


class AsyncRewardloopClient:
    """`RewardloopClient` for asyncio, with the same arguments, results and exceptions.

    A client belongs to the event loop in which its first call runs.
    """

    # All parameters are options of the public API, and all but the first are keyword-only.
    def __init__(  # noqa: PLR0913 - keyword options of the public client
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
        around = [*(aio_tracing_interceptors() if tracing else ()), *interceptors]
        access = Access(tls, token, insecure_token=insecure_token)
        self._rules = rules = CallRules.of(timeout_s, max_attempts, lane, connection, observer)
        self._transport: AioTransport = AioChannelTransport(addresses, access, connection, rules, hedging, around)
        self.labelling = AsyncLabelling(rules, self._drive)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls in flight end with `Cancelled`."""
        await self._transport.close()

    async def score(  # noqa: PLR0913 - the options of one call
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        *,
        truncation: TruncationName = "allowed",
        pin_version: str | None = None,
        min_version: int | None = None,
        lane: LaneName | None = None,
        model: str = "",
        reference: str = "",
        timeout_s: float | None = None,
    ) -> ScoreResult:
        """Score the responses to one prompt. See `RewardloopClient.score`."""
        request = convert.score_request(
            prompt,
            responses,
            truncation=truncation,
            pin_version=pin_version,
            min_version=min_version,
            lane=lane or self._rules.lane,
            model=model,
            reference=reference,
        )
        return await self._run(calls.score(request), timeout_s)

    async def score_batch(
        self, groups: Iterable[calls.GroupLike], *, lane: LaneName | None = None, timeout_s: float | None = None
    ) -> list[ScoreResult | RewardloopError]:
        """Score many groups in one call. See `RewardloopClient.score_batch`."""
        rules = self._rules
        return await self._drive(calls.score_batch(groups, lane or rules.lane, rules.policy, rules.limit(timeout_s)))

    async def score_stream(
        self,
        groups: Iterable[calls.GroupLike] | AsyncIterable[calls.GroupLike],
        *,
        lane: LaneName | None = None,
        timeout_s: float | None = None,
        max_in_flight: int = 64,
    ) -> AsyncIterator[ScoreResult | RewardloopError]:
        """Score groups over one stream while they arrive. See `RewardloopClient.score_stream`.

        ``groups`` may be an asynchronous iterable, too; it is read in this event loop.
        """
        ids = calls.StreamIds(lane or self._rules.lane)
        room = asyncio.Semaphore(max_in_flight)
        failure: list[Exception] = []

        async def requests() -> AsyncIterator[Message]:
            try:
                async for group in _async_iterator(groups):
                    await room.acquire()
                    if (request := ids.request(group)) is not None:
                        yield request
                    else:
                        room.release()
            except Exception as error:  # gRPC would only log it
                failure.append(error)

        replies = self._transport.stream(
            calls.SCORE_STREAM, requests(), reward_pb2.ScoreStreamResponse, bounded(timeout_s)
        )
        async with aclosing(replies):
            async for reply in replies:
                ids.take(reply)
                for outcome in ids.due():
                    yield outcome
                    room.release()
        for outcome in ids.due():
            yield outcome
        if failure:
            raise failure[0]
        ids.check_all_answered()

    async def record(self, event: feedback_pb2.FeedbackEvent, *, timeout_s: float | None = None) -> RecordResult:
        """Record one signal, and return once it is durable. See `RewardloopClient.record`."""
        return await self._run(calls.record(event), timeout_s)

    async def record_batch(
        self, events: Iterable[feedback_pb2.FeedbackEvent], *, timeout_s: float | None = None
    ) -> list[RecordResult | RewardloopError]:
        """Record many signals in one call. See `RewardloopClient.record_batch`."""
        return await self._drive(calls.record_batch(events, self._rules.policy, self._rules.limit(timeout_s)))

    async def retract(self, import_id: str, *, timeout_s: float | None = None) -> str:
        """Take back every signal of an import. See `RewardloopClient.retract`."""
        return await self._run(calls.retract(import_id), timeout_s)

    async def erase(
        self,
        *,
        annotator_id: str = "",
        generation_id: str = "",
        erasure_id: str = "",
        caller: str | None = None,
        timeout_s: float | None = None,
    ) -> ErasureProgress:
        """Erase a person's signals, or see how far an erasure has come. See `RewardloopClient.erase`."""
        return await self._run(calls.erase(annotator_id, generation_id, erasure_id, caller), timeout_s)

    async def taught_versions(
        self,
        *,
        annotator_id: str = "",
        generation_id: str = "",
        caller: str | None = None,
        timeout_s: float | None = None,
    ) -> TaughtVersions:
        """Return what `erase` would erase, and who learned from it. See `RewardloopClient.taught_versions`."""
        return await self._run(calls.taught_versions(annotator_id, generation_id, caller), timeout_s)

    # All parameters but the prompt are keyword-only options of the public API.
    async def generate(  # noqa: PLR0913 - the options of one call
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
        reward_model: str = "",
        stop: Sequence[str] = (),
        pin_version: str | None = None,
        token_log_probabilities: bool = False,
        timeout_s: float | None = None,
    ) -> Generation:
        """Ask the live policy for answers. See `RewardloopClient.generate`."""
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
            reward_model=reward_model,
            stop=stop,
            pin_version=pin_version,
            token_log_probabilities=token_log_probabilities,
        )
        return await self._run(calls.generate(request), timeout_s)

    # As of `generate`.
    async def generate_stream(  # noqa: PLR0913 - the options of one call
        self,
        prompt: PromptLike,
        *,
        candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        max_new_tokens: int = 0,
        stop: Sequence[str] = (),
        pin_version: str | None = None,
        token_log_probabilities: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[CandidateText | Generation, None]:
        """Yield the parts of the answers' texts while they are sampled, and at the end the whole `Generation`.

        See `RewardloopClient.generate_stream`.
        """
        request = convert.generate_request(
            prompt,
            candidates=candidates,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_new_tokens=max_new_tokens,
            stop=stop,
            pin_version=pin_version,
            token_log_probabilities=token_log_probabilities,
        )
        sent = policy_pb2.GenerateStreamRequest(request=request)
        replies = self._transport.stream(
            calls.GENERATE_STREAM,
            _async_iterator([sent]),
            policy_pb2.GenerateStreamResponse,
            self._rules.limit(timeout_s),
        )
        async with aclosing(replies):
            async for reply in replies:
                event = calls.stream_event(reply, request)
                yield event
                if isinstance(event, Generation):
                    return
        raise InvalidReply("the stream ended without its generation")

    async def list_versions(self, model: str, *, timeout_s: float | None = None) -> list[VersionInfo]:
        """Return every version of ``model`` in the store, newest first."""
        return await self._run(calls.list_versions(model), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Return the names of all models. See `RewardloopClient.models`."""
        return await self._run(calls.models(), timeout_s)

    async def get_version(self, model: str, version: str = "", *, timeout_s: float | None = None) -> VersionInfo:
        """Return one version with its manifest. See `RewardloopClient.get_version`."""
        return await self._run(calls.get_version(model, version), timeout_s)

    async def promote(
        self,
        model: str,
        version: str,
        *,
        reason: str = "",
        leader_epoch: int = 0,
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> Promotion:
        """Make a version active, and return once the server serves it. See `RewardloopClient.promote`."""
        return await self._run(calls.promote(model, version, reason, leader_epoch, expected_version), timeout_s)

    async def rollback(
        self, model: str, *, reason: str = "", expected_version: str | None = None, timeout_s: float = 120.0
    ) -> Promotion:
        """Make the version active that was active before. See `RewardloopClient.rollback`."""
        return await self._run(calls.rollback(model, reason, expected_version), timeout_s)

    async def set_canary(
        self,
        model: str,
        version: str | None,
        *,
        share: float = 0.0,
        reason: str = "",
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> VersionInfo | None:
        """Let a version answer a share of the requests. See `RewardloopClient.set_canary`."""
        return await self._run(calls.set_canary(model, version or "", share, reason, expected_version), timeout_s)

    async def set_shadow(
        self,
        model: str,
        version: str | None,
        *,
        share: float = 0.0,
        reason: str = "",
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> VersionInfo | None:
        """Score a share of the requests with a second version as well. See `RewardloopClient.set_shadow`."""
        return await self._run(calls.set_shadow(model, version or "", share, reason, expected_version), timeout_s)

    async def watch_versions(self, model: str, *, timeout_s: float | None = None) -> AsyncIterator[VersionInfo]:
        """Yield the active version now, and again after every change. See `RewardloopClient.watch_versions`."""
        attempts = Attempts(self._rules.policy, bounded(timeout_s))
        while True:
            request = model_pb2.WatchVersionsRequest(model=model)
            replies = self._transport.stream(
                calls.WATCH_VERSIONS,
                _async_iterator([request]),
                model_pb2.WatchVersionsResponse,
                attempts.remaining_s(),
            )
            try:
                async with aclosing(replies):
                    async for reply in replies:
                        attempts.restart()
                        yield convert.version_info(reply.active)
                return
            except RewardloopError as error:
                await self._transport.sleep(attempts.pause_after(error, was_seen_by_grpc=False))

    async def wait_until_active(self, model: str, version: str, timeout_s: float = 60.0) -> VersionInfo:
        """Wait until the server serves ``version``. Raises DeadlineExceeded after ``timeout_s`` seconds."""
        return await self._drive(calls.wait_until_active(model, version, self._rules.limit(timeout_s)))

    async def get_identity(self, *, timeout_s: float | None = None) -> Identity:
        """Return who the caller is. See `RewardloopClient.get_identity`."""
        return await self._run(calls.get_identity(), timeout_s)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Return whether a service takes requests. See `RewardloopClient.health`."""
        return await self._run(calls.health(service), timeout_s)

    @property
    def operations(self) -> AsyncOperations:
        """The methods of the OperationsService: rounds, people, dead letters and reports."""
        return AsyncOperations(self._run)

    async def _run(self, call: Call[T], timeout_s: float | None) -> T:
        return await self._drive(steps_of(call, self._rules.policy, self._rules.limit(timeout_s)))

    async def _drive(self, steps: Steps[T]) -> T:
        steps = observed(steps, self._rules.observer)
        answer: Message | RewardloopError | None = None
        try:
            while True:
                step = steps.throw(answer) if isinstance(answer, RewardloopError) else steps.send(answer)
                answer = await self._carry_out(step)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()

    async def _carry_out(self, step: Send | Pause) -> Message | RewardloopError | None:
        if isinstance(step, Pause):
            await self._transport.sleep(step.seconds)
            return None
        try:
            return await self._transport.unary(step)
        except RewardloopError as error:
            return error


async def _async_iterator(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
