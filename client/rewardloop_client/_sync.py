"""The blocking client."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from rewardloop.v1 import feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client import _calls as calls
from rewardloop_client import _convert as convert
from rewardloop_client._access import TLS, Access, Token
from rewardloop_client._call_rules import CallRules
from rewardloop_client._channel import ChannelTransport
from rewardloop_client._connection import Connection, tracing_interceptors
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
from rewardloop_client.labelling.sync import Labelling
from rewardloop_client.operations.service import Operations

M = TypeVar("M", bound=Message)
T = TypeVar("T")
Interceptor: TypeAlias = "grpc.UnaryUnaryClientInterceptor[Any, Any] | grpc.StreamStreamClientInterceptor[Any, Any]"


class Transport(Protocol):
    """Carries messages over gRPC, or to the fake in this process. Every method raises RewardloopError."""

    def unary(self, send: Send) -> Message: ...
    def stream(
        self, path: str, requests: Iterator[Message], response_type: type[M], timeout_s: float | None
    ) -> Generator[M, None, None]: ...
    def sleep(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class RewardloopClient:
    """Calls the services and waits for each answer.

    A client may be shared between threads. Close it with `close`, or use it as a context manager. Every method raises
    a subclass of RewardloopError when its call fails, and ValueError for a negative ``timeout_s``.

    Args:
        addresses: "host:port" or several of them, or a name ("dns:///...", "xds:///..."). Calls are spread over all
            addresses.
        timeout_s: Seconds that one call may take with all its attempts; infinity for no bound. Each method takes its
            own, and a `deadline` around the call bounds both.
        max_attempts: How often a call that is safe to repeat is tried, the first try included.
        lane: "production", or "trainer" to stand behind production in the server's queue.
        hedging: Send a slow `score` to a second replica, too. None never does.
        connection: Number of channels, keepalive, and which layer retries.
        observer: Called with a `FinishedCall` after each call, such as `rewardloop_client.metrics.PrometheusCalls()`.
        interceptors: gRPC client interceptors; each sees every attempt.
        tracing: Make each attempt a span of the application's OpenTelemetry tracer; the server's spans become its
            children.
        tls: True for the public authorities, or a `TLS` that names authorities and certificates.
        token: The caller's token: the text itself, the `Path` of a file that holds it (read again when it changes), or
            a function that returns it.
        insecure_token: Send the token without TLS to addresses other than loopback, too.

    Attributes:
        labelling: The calls of the LabellingService.

    Raises:
        InvalidAddress: An address is not host:port.
        InvalidAccess: A file of ``tls`` or ``token`` cannot be used, or the token would be sent in the clear.
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
        around = [*(tracing_interceptors() if tracing else ()), *interceptors]
        access = Access(tls, token, insecure_token=insecure_token)
        self._rules = rules = CallRules.of(timeout_s, max_attempts, lane, connection, observer)
        self._transport: Transport = ChannelTransport(addresses, access, connection, rules, hedging, around)
        self.labelling = Labelling(rules, self._drive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls in flight end with `Cancelled`."""
        self._transport.close()

    def score(  # noqa: PLR0913 - the options of one call
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
        """Score the responses to one prompt, all with the same model version.

        Args:
            prompt: A text, a list of messages, ``{"messages", "tools"}``, or a ready message. A message is
                ``{"role", "content"}``, with ``tool_calls``, ``name`` and ``tool_call_id`` as Hugging Face writes them.
            responses: The responses to score, at least one.
            truncation: "allowed" shortens a pair that exceeds the model's maximum length; "refused" makes it an error.
            pin_version: Use exactly this version, named by its number or digest.
            min_version: Use this version or a later one.
            lane: "production" or "trainer"; None for the client's own.
            model: Name of the reward model or of a mixture; empty for "reward".
            reference: The right answer, with which a mixture's rules compare.
            timeout_s: Seconds for the call with all its attempts; None for the client's own.

        Raises:
            InvalidRequest: The prompt or a response is empty or cannot be sent, or the server has no such model.
            NoModel: No version of the model, or of a part of the mixture, is warm.
            UnknownVersion: The server does not have the pinned version.
            InvalidReply: The reply does not have one finite score for each response.
        """
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
        return self._run(calls.score(request), timeout_s)

    def score_batch(
        self, groups: Iterable[calls.GroupLike], *, lane: LaneName | None = None, timeout_s: float | None = None
    ) -> list[ScoreResult | RewardloopError]:
        """Score many groups in one call, or in several if they are more than 1,000 or 3 MiB.

        Args:
            groups: `ScoreGroup` values or ``(prompt, responses)`` pairs.
            lane: For groups that name none; None for the client's own.
            timeout_s: Seconds for all calls with their attempts; None for the client's own.

        Returns:
            A result or an error for each group, in order. A bad group fails alone.
        """
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
        """Score groups over one stream while they arrive.

        Args:
            groups: `ScoreGroup` values or ``(prompt, responses)`` pairs. Another thread reads them; an exception that
                reading raises is raised here, after the outcomes of the groups before it.
            lane: For groups that name none; None for the client's own.
            timeout_s: Seconds for the whole stream; None for no bound.
            max_in_flight: Most groups that are sent before their outcomes are taken from the iterator.

        Yields:
            A result or an error for each group, in order.

        Raises:
            RewardloopError: The stream broke after its first reply.
            InvalidReply: The server answered a request that was never sent, or left one unanswered.
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
        """Record one signal, and return once the server has stored it durably.

        Args:
            event: A signal made with `Feedback`.
            timeout_s: Seconds for the call with all its attempts; None for the client's own.

        Raises:
            InvalidRequest: The event breaks a rule; ``violations`` names the fields.
            UnknownGeneration: The server does not know the event's generation_id.
        """
        return self._run(calls.record(event), timeout_s)

    def record_batch(
        self, events: Iterable[feedback_pb2.FeedbackEvent], *, timeout_s: float | None = None
    ) -> list[RecordResult | RewardloopError]:
        """Record many signals, up to 1,000 in a call. Those that failed for a passing reason are sent again.

        Args:
            events: Signals made with `Feedback`.
            timeout_s: Seconds for all attempts together; None for the client's own.

        Returns:
            A result or an error for each event, in order.
        """
        return self._drive(calls.record_batch(events, self._rules.policy, self._rules.limit(timeout_s)))

    def retract(self, import_id: str, *, timeout_s: float | None = None) -> str:
        """Take back every signal of an import that is recorded by now. The trainer learns from them no more.

        Args:
            import_id: What `rewardloop feedback import` printed.
            timeout_s: Seconds for all attempts together; None for the client's own.

        Returns:
            The place of the retraction in the stream.
        """
        return self._run(calls.retract(import_id), timeout_s)

    def erase(
        self,
        *,
        annotator_id: str = "",
        generation_id: str = "",
        erasure_id: str = "",
        caller: str | None = None,
        timeout_s: float | None = None,
    ) -> ErasureProgress:
        """Erase every signal of a person or about a generation for good, or see how far an erasure has come.

        The call returns at once. Call it again with the ``erasure_id`` until the progress is ``done``.

        Args:
            annotator_id: The person.
            generation_id: The generation, instead of a person.
            erasure_id: An erasure that was begun, instead of either.
            caller: Whose annotator it is; "" for signals without a caller, None for all callers.
            timeout_s: Seconds for all attempts together; None for the client's own.

        Raises:
            InvalidRequest: Not exactly one of the three is given.
            UnknownErasure: No erasure has the id.
        """
        return self._run(calls.erase(annotator_id, generation_id, erasure_id, caller), timeout_s)

    def taught_versions(
        self,
        *,
        annotator_id: str = "",
        generation_id: str = "",
        caller: str | None = None,
        timeout_s: float | None = None,
    ) -> TaughtVersions:
        """Return what `erase` would erase, and which versions learned from it. Nothing is erased.

        The call returns at once, and has the trainer look. Call it again until what it returns is ``done``.

        Args:
            annotator_id: The person.
            generation_id: The generation, instead of a person.
            caller: Whose annotator it is; "" for signals without a caller, None for all callers.
            timeout_s: Seconds for all attempts together; None for the client's own.

        Raises:
            InvalidRequest: Not exactly one of the two is given.
        """
        return self._run(calls.taught_versions(annotator_id, generation_id, caller), timeout_s)

    # All parameters but the prompt are keyword-only options of the public API.
    def generate(  # noqa: PLR0913 - the options of one call
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
        """Ask the live policy for answers. None or 0 leaves a setting to the server.

        Args:
            prompt: A text, a list of messages, ``{"messages", "tools"}``, or a ready message. A message is
                ``{"role", "content"}``, with ``tool_calls``, ``name`` and ``tool_call_id`` as Hugging Face writes them.
            candidates: How many answers to return.
            temperature: Sampling temperature.
            top_p: Sample from the smallest set of tokens that has this share of the probability.
            seed: Seed of the sampling.
            max_new_tokens: Most tokens of an answer.
            best_of: Sample and score this many answers, and return ``candidates`` of them; 0 scores none.
            selection: Which of the sampled answers are returned: "best" (the default), "informative" (the pair whose
                comparison tells the reward model most) or "uniform" (drawn at random).
            random_share: Share of informative pairs that are drawn uniformly instead.
            reward_model: Name of the reward model or of the mixture that scores with ``best_of``; empty for "reward".
            stop: Texts before which an answer ends, at most 16.
            pin_version: Answer with exactly this version.
            token_log_probabilities: Return the sampled tokens with each candidate.
            timeout_s: Seconds for the call with all its attempts; None for the client's own.

        Raises:
            FloorsNotMet: Fewer answers than asked for are at or above the floors of the mixture.
            PolicyUnavailable: No policy is being served.
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
            reward_model=reward_model,
            stop=stop,
            pin_version=pin_version,
            token_log_probabilities=token_log_probabilities,
        )
        return self._run(calls.generate(request), timeout_s)

    # As of `generate`.
    def generate_stream(  # noqa: PLR0913 - the options of one call
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
    ) -> Generator[CandidateText | Generation, None, None]:
        """Yield the parts of the answers' texts while they are sampled, and at the end the whole `Generation`.

        The arguments are those of `generate`. A call that failed is not repeated. Closing the iterator ends the
        sampling.
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
            iter([sent]),
            policy_pb2.GenerateStreamResponse,
            self._rules.limit(timeout_s),
        )
        with closing(replies):
            for reply in replies:
                event = calls.stream_event(reply, request)
                yield event
                if isinstance(event, Generation):
                    return
        raise InvalidReply("the stream ended without its generation")

    def list_versions(self, model: str, *, timeout_s: float | None = None) -> list[VersionInfo]:
        """Return every version of ``model``, such as "reward" or "policy", in the store, newest first."""
        return self._run(calls.list_versions(model), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Return the names of all models of which the server can be asked, "reward" first."""
        return self._run(calls.models(), timeout_s)

    def get_version(self, model: str, version: str = "", *, timeout_s: float | None = None) -> VersionInfo:
        """Return one version with its manifest. An empty ``version`` means the active one.

        Raises:
            UnknownVersion: The store does not have the version, or none is active.
        """
        return self._run(calls.get_version(model, version), timeout_s)

    def promote(
        self,
        model: str,
        version: str,
        *,
        reason: str = "",
        leader_epoch: int = 0,
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> Promotion:
        """Make a version active, and return once the server serves it.

        Args:
            model: The model's name, such as "reward" or "policy".
            version: Number of the version.
            reason: Kept with the change.
            leader_epoch: The epoch of a trainer that acts as the leader; 0 for any other caller.
            expected_version: The version that must be active now; None for any.
            timeout_s: Seconds that loading and warming the version may take.

        Raises:
            UnknownVersion: The store does not have the version.
            Overtaken: A leader of a later epoch has promoted a version.
            PointerMoved: Another version is active than expected.
            PromotionHeld: The caller acts as the leader, and a rollback holds its promotions.
        """
        return self._run(calls.promote(model, version, reason, leader_epoch, expected_version), timeout_s)

    def rollback(
        self, model: str, *, reason: str = "", expected_version: str | None = None, timeout_s: float = 120.0
    ) -> Promotion:
        """Make the version active that was active before. The call is never repeated.

        It holds the promotions of trainers until a person promotes a version, which may be the active one.

        Args:
            model: The model's name, such as "reward" or "policy".
            reason: Kept with the change.
            expected_version: The version that must be active now; None for any. Without it, two callers that roll back
                at once go back two versions.
            timeout_s: Seconds that loading and warming the version may take.

        Raises:
            NothingToRollBack: No version was active before.
            PointerMoved: Another version is active than expected.
        """
        return self._run(calls.rollback(model, reason, expected_version), timeout_s)

    def set_canary(
        self,
        model: str,
        version: str | None,
        *,
        share: float = 0.0,
        reason: str = "",
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> VersionInfo | None:
        """Let a version answer a share of the requests beside the active one.

        The prompt alone decides which version answers a request. A promotion or rollback ends the canary.

        Args:
            model: The model's name, such as "reward" or "policy".
            version: Number of the version; None ends the canary.
            share: Share of the requests, above 0 and below 1.
            reason: Kept with the change.
            expected_version: The version that must be active now; None for any.
            timeout_s: Seconds that loading and warming the version may take.

        Returns:
            The canary, or None after it was ended.

        Raises:
            PointerMoved: Another version is active than expected.
        """
        return self._run(calls.set_canary(model, version or "", share, reason, expected_version), timeout_s)

    def set_shadow(
        self,
        model: str,
        version: str | None,
        *,
        share: float = 0.0,
        reason: str = "",
        expected_version: str | None = None,
        timeout_s: float = 120.0,
    ) -> VersionInfo | None:
        """Score a share of the requests with a second version as well, to compare both in the server's metrics.

        Callers never see the shadow's scores. A promotion or rollback ends the shadow.

        Args:
            model: The name of a reward model.
            version: Number of the version; None ends the shadow.
            share: Share of the requests, above 0 and at most 1.
            reason: Kept with the change.
            expected_version: The version that must be active now; None for any.
            timeout_s: Seconds that loading and warming the version may take.

        Returns:
            The shadow, or None after it was ended.

        Raises:
            PointerMoved: Another version is active than expected.
        """
        return self._run(calls.set_shadow(model, version or "", share, reason, expected_version), timeout_s)

    def watch_versions(self, model: str, *, timeout_s: float | None = None) -> Iterator[VersionInfo]:
        """Yield the active version now, and again after every change. A broken connection is opened again.

        Args:
            model: The model's name, such as "reward" or "policy".
            timeout_s: Seconds for the whole watch, which then ends with DeadlineExceeded; None for no bound.
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
        """Wait until the server serves ``version``. Raises DeadlineExceeded after ``timeout_s`` seconds."""
        return self._drive(calls.wait_until_active(model, version, self._rules.limit(timeout_s)))

    def get_identity(self, *, timeout_s: float | None = None) -> Identity:
        """Return who the caller is to the services, and what its credentials allow.

        Raises:
            Unauthenticated: The credentials are missing, unknown or expired.
        """
        return self._run(calls.get_identity(), timeout_s)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Return whether a service takes requests. It takes none before its model is warm and while it drains.

        Args:
            service: Such as "rewardloop.v1.RewardService"; empty for the whole process.
            timeout_s: Seconds for the call with all its attempts; None for the client's own.

        Raises:
            NotFound: The server does not have the service.
        """
        return self._run(calls.health(service), timeout_s)

    @property
    def operations(self) -> Operations:
        """The methods of the OperationsService: rounds, people, dead letters and reports."""
        return Operations(self._run)

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
