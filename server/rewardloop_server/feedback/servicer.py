"""The FeedbackService: validate -> fill in -> append. A reply means that the signal is in the stream or the spool."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import grpc
import prometheus_client

from rewardloop.formats.erasing.erasures import Kind
from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import MOST_IMPORT_ID_CHARACTERS
from rewardloop.v1 import feedback_pb2, feedback_pb2_grpc, policy_pb2
from rewardloop_server.calls.errors import InvalidRequest, RewardloopError, UnknownGeneration, Violation
from rewardloop_server.calls.message_size import bytes_of_message
from rewardloop_server.calls.validate import Limits, validate_event, validate_signal, within
from rewardloop_server.calls.vocabulary import FeedbackOutcome
from rewardloop_server.doors.callers import PRESENT
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.room import Room
from rewardloop_server.feedback.signal import Signal, sender_of, sent
from rewardloop_server.feedback.stream import Appended
from rewardloop_server.observe.metrics import ServerMetrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Event: TypeAlias = feedback_pb2.FeedbackEvent

_KINDS: Mapping[str, Kind] = {"annotator_id": "annotator", "generation_id": "generation"}
# After this many checked events of a batch, other requests have their turn on the event loop.
_CHECKED_AT_ONCE = 100
# A batch is checked and sent as copies several times its size. Batches above the first number of bytes wait until all
# of them together have at most the second.
_LARGE_BATCH, _LARGE_AT_ONCE = 256 * 2**10, 32 * 2**20


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    """Checks signals, fills in what the server knows about them, and appends them.

    Args:
        intake: Where the signals go.
        limits: Bounds of one signal.
        metrics: Where signals are counted.
        max_events: Most signals of one RecordBatch.
        needs_generation: Whether a signal must name a generation.
        aspects: The reward models that learn from signals.
    """

    def __init__(
        self,
        intake: Intake,
        limits: Limits,
        metrics: ServerMetrics,
        *,
        max_events: int,
        needs_generation: bool = False,
        aspects: Collection[str] = (REWARD,),
    ) -> None:
        self._intake = intake
        self._limits = limits
        self._metrics = metrics
        self._max_events = max_events
        self._needs_generation = needs_generation
        self._aspects = aspects
        self._counters: dict[tuple[str, str], prometheus_client.Counter] = {}
        self._room = Room(_LARGE_AT_ONCE)
        self._preparing = asyncio.Lock()  # one batch at a time, so that each turn of the event loop is short

    async def Record(self, request: feedback_pb2.RecordRequest, context: Context) -> feedback_pb2.RecordResponse:
        if not request.HasField("event"):
            raise InvalidRequest([Violation("event", "missing")])
        (outcome,) = await self._record([request.event])
        if isinstance(outcome, InvalidRequest):
            raise within(outcome, "event")
        if isinstance(outcome, RewardloopError):
            raise outcome
        return _reply(outcome)

    async def RecordBatch(
        self, request: feedback_pb2.RecordBatchRequest, context: Context
    ) -> feedback_pb2.RecordBatchResponse:
        if not 1 <= len(request.events) <= self._max_events:
            raise InvalidRequest([Violation("events", f"1 to {self._max_events} events, not {len(request.events)}")])
        size = bytes_of_message(request)
        async with self._room.taken(size) if size > _LARGE_BATCH else nullcontext():
            outcomes = await self._record(request.events)
        reply = feedback_pb2.RecordBatchResponse()
        for i, outcome in enumerate(outcomes):
            item = reply.items.add()
            if isinstance(outcome, Appended):
                item.result.CopyFrom(_reply(outcome))
                continue
            error = within(outcome, f"events[{i}]") if isinstance(outcome, InvalidRequest) else outcome
            self._metrics.rejected_total.labels(reason=error.reason).inc()
            item.error.CopyFrom(error.to_status())
        return reply

    async def Retract(self, request: feedback_pb2.RetractRequest, context: Context) -> feedback_pb2.RetractResponse:
        if not 1 <= len(request.import_id) <= MOST_IMPORT_ID_CHARACTERS:
            raise InvalidRequest([Violation("import_id", f"not 1 to {MOST_IMPORT_ID_CHARACTERS} characters")])
        credential = PRESENT.get()
        caller = "" if credential is None else credential.caller
        return feedback_pb2.RetractResponse(stream_id=await self._intake.retract(request.import_id, caller))

    async def Erase(self, request: feedback_pb2.EraseRequest, context: Context) -> feedback_pb2.EraseResponse:
        field, text, caller = self._named(request)
        desk = self._intake.erasures
        if field == "erasure_id":
            return await desk.progress(text)
        return await desk.progress(await desk.begin(_KINDS[field], text, caller))

    async def ListTaughtVersions(
        self, request: feedback_pb2.ListTaughtVersionsRequest, context: Context
    ) -> feedback_pb2.ListTaughtVersionsResponse:
        field, text, caller = self._named(request)
        return await self._intake.erasures.look(_KINDS[field], text, caller)

    def _named(
        self, request: feedback_pb2.EraseRequest | feedback_pb2.ListTaughtVersionsRequest
    ) -> tuple[str, str, str | None]:
        """Return which id names the signals, the id, and whose annotator it is. Raises InvalidRequest."""
        field = request.WhichOneof("whose")
        if field is None:
            raise InvalidRequest([Violation("whose", "names nobody and nothing")])
        text = str(getattr(request, field))
        if not 1 <= len(text) <= self._limits.max_id_chars:
            raise InvalidRequest([Violation(field, f"not 1 to {self._limits.max_id_chars} characters")])
        return field, text, request.caller if request.HasField("caller") else None

    async def _record(self, events: Sequence[Event]) -> list[Appended | RewardloopError]:
        """Return for each event its place, or what is wrong with it. Raises if Redis does not take the events."""
        try:
            async with self._preparing if len(events) > _CHECKED_AT_ONCE else nullcontext():
                prepared = await self._prepare(events)
            appended = iter(await self._intake.append([each for each in prepared if isinstance(each, Signal)]))
        except RewardloopError:
            self._count(events, ["failed"] * len(events))
            raise
        outcomes: list[Appended | RewardloopError] = [
            next(appended) if isinstance(each, Signal) else each for each in prepared
        ]
        self._count(events, [_word(outcome) for outcome in outcomes])
        return outcomes

    async def _prepare(self, events: Sequence[Event]) -> list[Signal | RewardloopError]:
        """Return each event as a complete signal, or what is wrong with it. Raises RedisUnavailable."""
        credential = PRESENT.get()
        caller = "" if credential is None else credential.caller
        sender = sender_of(caller, time.time_ns())
        prepared: list[Signal | RewardloopError] = []
        for event in events:
            signal = sent(event, sender)
            prepared.append(self._error_of(event, len(signal.said)) or signal)
            if len(prepared) % _CHECKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if named := {each.event.generation_id for each in prepared if isinstance(each, Signal)} - {""}:
            generations = await self._intake.generations(named, caller)
            for i, event in enumerate(events):
                if isinstance(prepared[i], Signal) and event.generation_id and generations is not None:
                    prepared[i] = fill_in(event, generations.get(event.generation_id), self._limits) or prepared[i]
        return prepared

    def _error_of(self, event: Event, size: int) -> InvalidRequest | None:
        try:
            validate_event(event, self._limits, size)
        except InvalidRequest as error:
            return error
        if event.aspect and event.aspect not in self._aspects:
            return InvalidRequest([Violation("aspect", f"not one of {', '.join(self._aspects)}")])
        if self._needs_generation and not event.generation_id:
            return InvalidRequest([Violation("generation_id", "missing: only feedback about our generations is taken")])
        return None

    def _count(self, events: Sequence[Event], outcomes: Sequence[FeedbackOutcome]) -> None:
        kinds = (event.WhichOneof("signal") or "none" for event in events)
        for (kind, outcome), count in Counter(zip(kinds, outcomes, strict=True)).items():
            if (counter := self._counters.get((kind, outcome))) is None:
                counter = self._metrics.feedback_events_total.labels(kind=kind, outcome=outcome)
                self._counters[kind, outcome] = counter
            counter.inc(count)


def fill_in(event: Event, generation: policy_pb2.Generation | None, limits: Limits) -> RewardloopError | None:
    """Put the generation's prompt, responses, versions and way of being shown into the event.

    Returns what is wrong with the event then, or None. ``generation`` is None if it is not known.
    """
    if generation is None:
        return UnknownGeneration(f"no generation is logged as {event.generation_id}, or it has expired")
    event.prompt.CopyFrom(generation.prompt)
    event.responses.extend(candidate.text for candidate in generation.candidates)
    event.policy_version.CopyFrom(generation.policy_version)
    if any(candidate.HasField("policy_version") for candidate in generation.candidates):
        event.response_versions.extend(
            (candidate.policy_version if candidate.HasField("policy_version") else generation.policy_version).version
            for candidate in generation.candidates
        )
    event.shown.CopyFrom(_shown(generation))
    try:
        validate_signal(event, limits)
    except InvalidRequest as error:
        return error
    return None


def _shown(generation: policy_pb2.Generation) -> feedback_pb2.Shown:
    candidates = generation.candidates
    is_scored = all(candidate.HasField("score") for candidate in candidates)
    return feedback_pb2.Shown(
        chosen=generation.chosen if generation.HasField("chosen") else None,
        show_probabilities=generation.show_probabilities,
        temperature=generation.temperature,
        top_p=generation.top_p,
        log_probabilities=[candidate.log_probability for candidate in candidates],
        token_counts=[candidate.token_count for candidate in candidates],
        scores=[candidate.score for candidate in candidates] if is_scored else (),
    )


def _word(outcome: Appended | RewardloopError) -> FeedbackOutcome:
    if isinstance(outcome, RewardloopError):
        return "rejected"
    return "duplicate" if outcome.is_duplicate else "recorded" if outcome.stream_id else "spooled"


def _reply(place: Appended) -> feedback_pb2.RecordResponse:
    if place.is_duplicate:
        return feedback_pb2.RecordResponse(duplicate=True, erased=place.is_erased)
    return feedback_pb2.RecordResponse(stream_id=place.stream_id)
