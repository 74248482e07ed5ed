"""A rewardloop in memory, for tests of code that uses the client. It uses no network and no threads, and never waits.

    fake = FakeRewardloop(score=lambda prompt, response: 1.0 if "please" in response else 0.0)
    fake.score("Hi", ["please wait", "wait"]).best        # 0
    fake.fail("score", QueueFull("busy"), times=10)       # the next ten attempts fail
    client = fake.as_async()                              # an AsyncRewardloopClient over the same state

It is a `RewardloopClient`: the same code as over gRPC builds, checks and retries requests, and reads replies.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from typing import TypeVar, cast

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.v1 import access_pb2, common_pb2, feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client import _calls as calls
from rewardloop_client._aio import AsyncRewardloopClient
from rewardloop_client._convert import timestamp
from rewardloop_client._errors import (
    EventIdConflict,
    InvalidRequest,
    NotFound,
    RewardloopError,
    Unimplemented,
    UnknownErasure,
    UnknownGeneration,
    UnknownVersion,
    Violation,
    to_status,
)
from rewardloop_client._fakes.choice import choose
from rewardloop_client._fakes.versions import FakeVersions
from rewardloop_client._retry import Send
from rewardloop_client._rules import choice_violations, event_violations, prompt_violations, score_violations
from rewardloop_client._sync import RewardloopClient
from rewardloop_client._types import Identity, TaughtVersion
from rewardloop_client.labelling.fake import FakeLabelling
from rewardloop_client.operations.fake import METHODS as _OPERATIONS
from rewardloop_client.operations.fake import FakeLoop

__all__ = ["FakeRewardloop"]

M = TypeVar("M", bound=Message)

_METHODS = {
    "score": calls.SCORE,
    "score_batch": calls.SCORE_BATCH,
    "score_stream": calls.SCORE_STREAM,
    "record": calls.RECORD,
    "record_batch": calls.RECORD_BATCH,
    "retract": calls.RETRACT,
    "erase": calls.ERASE,
    "taught_versions": calls.LIST_TAUGHT_VERSIONS,
    "generate": calls.GENERATE,
    "generate_stream": calls.GENERATE_STREAM,
    "list_versions": calls.LIST_VERSIONS,
    "get_version": calls.GET_VERSION,
    "promote": calls.PROMOTE,
    "rollback": calls.ROLLBACK,
    "set_canary": calls.SET_CANARY,
    "set_shadow": calls.SET_SHADOW,
    "watch_versions": calls.WATCH_VERSIONS,
    "add_tasks": calls.ADD_TASKS,
    "retract_tasks": calls.RETRACT_TASKS,
    "next_task": calls.NEXT_TASK,
    "answer": calls.ANSWER,
    "undo": calls.UNDO,
    "progress": calls.GET_PROGRESS,
    "list_answers": calls.LIST_ANSWERS,
    "set_guidelines": calls.SET_GUIDELINES,
    "guidelines": calls.GET_GUIDELINES,
    "get_identity": calls.GET_IDENTITY,
    "health": calls.HEALTH_CHECK,
    **_OPERATIONS,
}


def _by_length(prompt: str, response: str) -> float:
    return float(len(response))


def _echo(prompt: str, index: int) -> str:
    return f"answer {index + 1} to: {prompt}"


class FakeRewardloop(RewardloopClient):
    """A client whose methods are answered in memory, by the rules of the contract.

    Args:
        score: Returns the score of ``(prompt, response)``; by default the length of the response in characters. A
            conversation arrives as lines of "role: content".
        generate: Returns the text of the candidate for ``(prompt, index)``.
        versions: The version numbers of each model; the last one is active.
        models: Score functions, as ``score``, of further reward models and mixtures by name, each with a version "1"
            unless ``versions`` says otherwise.
        max_attempts: How often a call that is safe to repeat is tried.

    Attributes:
        events: Every recorded event once, oldest first.
        taught: The versions that learned from whatever is erased or looked at, if there is any signal of it.
        generations: The generations, by generation_id.
        label_queue: The tasks of `labelling`; its ``end_leases`` ends all leases.
        attempts: Names of the methods that were called, retries included.
        identity: Who every caller is, for `get_identity`; by default anybody, who may do everything.
        services: Whether each service takes requests, for `health`.
        loop: What the OperationsService tells of rounds, people, dead letters and reports.
    """

    def __init__(
        self,
        *,
        score: Callable[[str, str], float] = _by_length,
        generate: Callable[[str, int], str] = _echo,
        versions: Mapping[str, Iterable[str]] | None = None,
        models: Mapping[str, Callable[[str, str], float]] | None = None,
        max_attempts: int = 4,
    ) -> None:
        super().__init__(max_attempts=max_attempts)
        self._transport = _InMemory(self)
        self._generate_one = generate
        self._scores = {REWARD: score, **(models or {})}
        stated = {**(versions or {REWARD: "1", POLICY: "1"})}
        stated.update({name: "1" for name in models or {} if name not in stated})
        self._versions = FakeVersions(stated)
        self._failures: dict[str, list[RewardloopError]] = {}
        self._answers: dict[str, Callable[..., Message]] = {
            calls.SCORE: self._score,
            calls.SCORE_BATCH: self._score_batch,
            calls.RECORD: lambda request: self._record(request.event),
            calls.RECORD_BATCH: self._record_batch,
            calls.RETRACT: self._retract,
            calls.ERASE: self._erase,
            calls.LIST_TAUGHT_VERSIONS: self._list_taught_versions,
            calls.GENERATE: self._generate,
            calls.GET_IDENTITY: self._identity,
            calls.HEALTH_CHECK: self._health,
            **self._versions.answers(),
        }
        self.loop = FakeLoop(self._versions.statuses)
        self._answers |= self.loop.answers()
        self.events: list[feedback_pb2.FeedbackEvent] = []
        self._erased: dict[str, set[str]] = {}  # erasure_id: the event_ids that it erased
        self.taught: list[TaughtVersion] = []
        self.generations: dict[str, policy_pb2.Generation] = {}
        self.label_queue = FakeLabelling(self.events, self.generations)
        self._answers |= self.label_queue.answers
        self.attempts: list[str] = []
        self.identity = Identity("", frozenset(("admin", "feedback", "generate", "label", "score", "view")), True)
        self.services = {"": True, "rewardloop.v1.RewardService": True, "rewardloop.v1.PolicyService": True}

    def fail(self, method: str, error: RewardloopError, *, times: int = 1) -> None:
        """Make the next ``times`` attempts of ``method``, a method's name such as "score", fail with ``error``."""
        self._failures.setdefault(_METHODS[method], []).extend([error] * times)

    def add_version(self, model: str, version: str) -> None:
        """Add a version to the store without making it active."""
        self._versions.add(model, version)

    def as_async(self) -> AsyncRewardloopClient:
        """Return an asyncio client that shares the state of this fake."""
        client = AsyncRewardloopClient(max_attempts=self._rules.policy.max_attempts)
        client._transport = _InMemoryAio(self)
        return client

    def _attempt(self, path: str) -> None:
        self.attempts.append(next(name for name, known in _METHODS.items() if known == path))
        if waiting := self._failures.get(path):
            raise waiting.pop(0)

    def _answer(self, path: str, request: Message) -> Message:
        self._attempt(path)
        if path not in self._answers:
            raise Unimplemented(path)
        return self._answers[path](request)

    def _stream(self, path: str, request: Message) -> Iterator[Message]:
        if isinstance(request, reward_pb2.ScoreStreamRequest):
            reply = reward_pb2.ScoreStreamResponse(request_id=request.request_id)
            reply.MergeFrom(_fill(reward_pb2.ScoreStreamResponse(), self._score, request.request))
            yield reply
        elif isinstance(request, policy_pb2.GenerateStreamRequest):
            yield from self._generate_stream(request.request)
        else:
            info = self._versions.info(cast(model_pb2.WatchVersionsRequest, request).model, "")
            yield model_pb2.WatchVersionsResponse(active=info)

    def _score(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        _refuse(score_violations(request))
        model = request.model or REWARD
        if model not in self._scores:
            raise InvalidRequest(f"{model!r} is no reward model", violations=[Violation("model", "is not known")])
        info = self._versions.info(model, request.pin_version or self._versions.canary_for(model, request.prompt))
        if request.HasField("min_version") and int(info.version.version) < request.min_version:
            raise UnknownVersion(f"{model} version {request.min_version} or later is not served here")
        scores = [self._scores[model](_text(request.prompt), response) for response in request.responses]
        return reward_pb2.ScoreResponse(
            scores=[reward_pb2.ResponseScore(score=s, logit=s, token_count=1) for s in scores],
            model_version=info.version,
        )

    def _score_batch(self, request: reward_pb2.ScoreBatchRequest) -> reward_pb2.ScoreBatchResponse:
        items = [_fill(reward_pb2.ScoreBatchItem(), self._score, group) for group in request.groups]
        return reward_pb2.ScoreBatchResponse(items=items)

    def _record(self, event: feedback_pb2.FeedbackEvent) -> feedback_pb2.RecordResponse:
        responses = list(event.responses)
        if event.generation_id:
            if event.generation_id not in self.generations:
                raise UnknownGeneration(f"generation {event.generation_id} is unknown")
            responses = [c.text for c in self.generations[event.generation_id].candidates]
        _refuse(event_violations(event, responses))
        if any(event.event_id in erased for erased in self._erased.values()):
            return feedback_pb2.RecordResponse(duplicate=True, erased=True)
        if recorded := [known for known in self.events if known.event_id == event.event_id]:
            if recorded[0] != event:
                raise EventIdConflict("another signal was recorded under this event_id")
            return feedback_pb2.RecordResponse(duplicate=True)
        kept = feedback_pb2.FeedbackEvent()
        kept.CopyFrom(event)
        self.events.append(kept)
        return feedback_pb2.RecordResponse(stream_id=f"{len(self.events)}-0")

    def _record_batch(self, request: feedback_pb2.RecordBatchRequest) -> feedback_pb2.RecordBatchResponse:
        items = [_fill(feedback_pb2.RecordBatchItem(), self._record, event) for event in request.events]
        return feedback_pb2.RecordBatchResponse(items=items)

    def _retract(self, request: feedback_pb2.RetractRequest) -> feedback_pb2.RetractResponse:
        if not request.import_id:
            raise InvalidRequest("import_id: missing", violations=[Violation("import_id", "missing")])
        self.events[:] = [event for event in self.events if event.import_id != request.import_id]
        return feedback_pb2.RetractResponse(stream_id=f"{len(self.events) + 1}-0")

    def _erase(self, request: feedback_pb2.EraseRequest) -> feedback_pb2.EraseResponse:
        """Erase at once. Callers are not told apart."""
        erasure_id = request.erasure_id
        if not erasure_id:
            erasure_id = f"erasure-{len(self._erased) + 1}"
            gone = self._events_of(request)
            self._erased[erasure_id] = {event.event_id for event in gone}
            self.events = [event for event in self.events if event not in gone]
            self.generations.pop(request.generation_id, None)
        elif erasure_id not in self._erased:
            raise UnknownErasure(f"no erasure has the id {erasure_id}")
        response = feedback_pb2.EraseResponse(erasure_id=erasure_id, done=True)
        response.holders.add(
            name="fake",
            state=feedback_pb2.ERASURE_STATE_DONE,
            erased={"signals": len(self._erased[erasure_id])},
        )
        response.versions.extend(self._taught(bool(self._erased[erasure_id])))
        return response

    def _list_taught_versions(
        self, request: feedback_pb2.ListTaughtVersionsRequest
    ) -> feedback_pb2.ListTaughtVersionsResponse:
        """Answer at once. Callers are not told apart."""
        signals = len(self._events_of(request))
        response = feedback_pb2.ListTaughtVersionsResponse(done=True, signals=signals)
        response.look_time.GetCurrentTime()
        response.versions.extend(self._taught(bool(signals)))
        return response

    def _events_of(
        self, request: feedback_pb2.EraseRequest | feedback_pb2.ListTaughtVersionsRequest
    ) -> list[feedback_pb2.FeedbackEvent]:
        field = str(request.WhichOneof("whose"))
        return [event for event in self.events if getattr(event, field) == getattr(request, field)]

    def _taught(self, has_signals: bool) -> list[feedback_pb2.TaughtVersion]:
        return [
            feedback_pb2.TaughtVersion(model=each.model, version=each.version, directly=each.directly)
            for each in self.taught
            if has_signals
        ]

    def _generate(self, request: policy_pb2.GenerateRequest) -> policy_pb2.GenerateResponse:
        _refuse(itertools.chain(prompt_violations(request.prompt), choice_violations(request)))
        sampled = request.best_of or max(1, request.candidates)
        texts = [_until(request.stop, self._generate_one(_text(request.prompt), i)) for i in range(sampled)]
        generation = policy_pb2.Generation(
            generation_id=str(uuid.uuid4()),
            prompt=request.prompt,
            candidates=[
                policy_pb2.Candidate(
                    text=t,
                    token_count=1,
                    finish_reason=policy_pb2.FINISH_REASON_STOP,
                    tokens=[policy_pb2.TokenLogProbability(text=t)] if request.token_log_probabilities else (),
                )
                for t in texts
            ],
            policy_version=self._versions.info("policy", request.pin_version).version,
            create_time=timestamp(0),
        )
        if request.best_of:
            text, model = _text(request.prompt), request.reward_model or REWARD
            if model not in self._scores:
                raise InvalidRequest(f"{model!r} is no reward model", violations=[Violation("reward_model", "unknown")])
            score = self._scores[model]
            choose(request, generation, lambda said: score(text, said), self._versions.info(model, "").version)
        self.generations[generation.generation_id] = generation
        return policy_pb2.GenerateResponse(
            generation_id=generation.generation_id,
            candidates=generation.candidates,
            policy_version=generation.policy_version,
            chosen=generation.chosen if request.best_of else None,
            prompt_token_count=1,
        )

    def _generate_stream(self, request: policy_pb2.GenerateRequest) -> Iterator[Message]:
        """Yield the words of each candidate in turn, then the answer."""
        if request.best_of:
            _refuse(iter([Violation("best_of", "chooses among whole answers: not with a stream")]))
        end = self._generate(request)
        words = [re.findall(r"\s*\S+|\s+", candidate.text) for candidate in end.candidates]
        for said in itertools.zip_longest(*words):
            for i, word in enumerate(said):
                if word:
                    text = policy_pb2.CandidateText(candidate=i, text=word)
                    yield policy_pb2.GenerateStreamResponse(generation_id=end.generation_id, text=text)
        yield policy_pb2.GenerateStreamResponse(generation_id=end.generation_id, end=end)

    def _identity(self, request: access_pb2.GetIdentityRequest) -> access_pb2.GetIdentityResponse:
        known = self.identity
        return access_pb2.GetIdentityResponse(caller=known.caller, roles=sorted(known.roles), is_open=known.is_open)

    def _health(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        if request.service not in self.services:
            raise NotFound(f"service {request.service!r} is unknown")
        status = health_pb2.HealthCheckResponse.ServingStatus
        serving = status.SERVING if self.services[request.service] else status.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=serving)


class _InMemory:
    def __init__(self, fake: FakeRewardloop) -> None:
        self._fake = fake

    def unary(self, send: Send) -> Message:
        return self._fake._answer(send.path, send.request)

    def stream(
        self, path: str, requests: Iterator[Message], response_type: type[M], timeout_s: float | None
    ) -> Generator[M, None, None]:
        self._fake._attempt(path)
        for request in requests:
            for reply in self._fake._stream(path, request):
                yield cast(M, reply)

    def sleep(self, seconds: float) -> None:
        """Return at once: retries of the fake do not wait."""

    def close(self) -> None:
        """Do nothing: no connection is open."""


class _InMemoryAio:
    def __init__(self, fake: FakeRewardloop) -> None:
        self._fake = fake

    async def unary(self, send: Send) -> Message:
        return self._fake._answer(send.path, send.request)

    async def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[M], timeout_s: float | None
    ) -> AsyncGenerator[M, None]:
        self._fake._attempt(path)
        async for request in requests:
            for reply in self._fake._stream(path, request):
                yield cast(M, reply)

    async def sleep(self, seconds: float) -> None:
        """Return at once: retries of the fake do not wait."""

    async def close(self) -> None:
        """Do nothing: no connection is open."""


def _until(stops: Iterable[str], text: str) -> str:
    """Return the text before the first of the stop texts."""
    return text[: min((text.find(each) for each in stops if each in text), default=None)]


def _refuse(violations: Iterator[Violation]) -> None:
    if broken := tuple(violations):
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in broken), violations=broken)


def _fill(item: M, answer: Callable[..., Message], request: Message) -> M:
    """Return ``item`` with the answer in ``result``, or the failure in ``error``."""
    try:
        item.result.CopyFrom(answer(request))  # type: ignore[attr-defined]
    except RewardloopError as error:
        item.error.CopyFrom(to_status(error))  # type: ignore[attr-defined]
    return item


def _text(prompt: common_pb2.Prompt) -> str:
    if prompt.WhichOneof("content") == "text":
        return prompt.text
    return "\n".join(
        f"{m.role}: {m.content}" + "".join(f"\n{m.role} calls {c.name}({c.arguments_json})" for c in m.tool_calls)
        for m in prompt.conversation.messages
    )
