"""Every method of the services as a `Call` or as steps, which both clients carry out in their own way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.v1 import access_pb2, feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client import _convert as convert
from rewardloop_client._errors import InvalidReply, InvalidRequest, NotFound, RewardloopError
from rewardloop_client._retry import Attempts, Call, Pause, RetryPolicy, Send, Steps, steps_of
from rewardloop_client._types import (
    CandidateText,
    ErasureProgress,
    Generation,
    Identity,
    LaneName,
    Promotion,
    PromptLike,
    RecordResult,
    ScoreGroup,
    ScoreResult,
    TaughtVersions,
    VersionInfo,
)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

GET_IDENTITY = "/rewardloop.v1.AccessService/GetIdentity"
SCORE = "/rewardloop.v1.RewardService/Score"
SCORE_BATCH = "/rewardloop.v1.RewardService/ScoreBatch"
SCORE_STREAM = "/rewardloop.v1.RewardService/ScoreStream"
RECORD = "/rewardloop.v1.FeedbackService/Record"
RECORD_BATCH = "/rewardloop.v1.FeedbackService/RecordBatch"
RETRACT = "/rewardloop.v1.FeedbackService/Retract"
ERASE = "/rewardloop.v1.FeedbackService/Erase"
LIST_TAUGHT_VERSIONS = "/rewardloop.v1.FeedbackService/ListTaughtVersions"
GENERATE = "/rewardloop.v1.PolicyService/Generate"
GENERATE_STREAM = "/rewardloop.v1.PolicyService/GenerateStream"
LIST_VERSIONS = "/rewardloop.v1.ModelService/ListVersions"
GET_VERSION = "/rewardloop.v1.ModelService/GetVersion"
PROMOTE = "/rewardloop.v1.ModelService/Promote"
ROLLBACK = "/rewardloop.v1.ModelService/Rollback"
SET_CANARY = "/rewardloop.v1.ModelService/SetCanary"
SET_SHADOW = "/rewardloop.v1.ModelService/SetShadow"
WATCH_VERSIONS = "/rewardloop.v1.ModelService/WatchVersions"
ADD_TASKS = "/rewardloop.v1.LabellingService/AddTasks"
RETRACT_TASKS = "/rewardloop.v1.LabellingService/RetractTasks"
NEXT_TASK = "/rewardloop.v1.LabellingService/NextTask"
ANSWER = "/rewardloop.v1.LabellingService/Answer"
UNDO = "/rewardloop.v1.LabellingService/Undo"
GET_PROGRESS = "/rewardloop.v1.LabellingService/GetProgress"
LIST_ANSWERS = "/rewardloop.v1.LabellingService/ListAnswers"
SET_GUIDELINES = "/rewardloop.v1.LabellingService/SetGuidelines"
GET_GUIDELINES = "/rewardloop.v1.LabellingService/GetGuidelines"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

# Methods that change nothing when they are called twice. A second Rollback goes back one version further, and a second
# Undo one answer.
REPEATABLE = (
    GET_IDENTITY,
    *(SCORE, SCORE_BATCH, SCORE_STREAM, RECORD, RECORD_BATCH, RETRACT, ERASE, LIST_TAUGHT_VERSIONS, GENERATE),
    *(LIST_VERSIONS, GET_VERSION, PROMOTE, SET_CANARY, SET_SHADOW, HEALTH_CHECK),
    *(ADD_TASKS, RETRACT_TASKS, NEXT_TASK, ANSWER, GET_PROGRESS, LIST_ANSWERS, SET_GUIDELINES, GET_GUIDELINES),
)

_POLL_S = 0.2

# A server takes 1,024 groups, 1,000 events and 8 MiB in one call by default, and much software for gRPC takes 4 MiB.
_MOST_ITEMS = 1000
_MOST_BYTES = 3 * 2**20
MODELS = (REWARD, POLICY)  # of a server that does not say

GroupLike = ScoreGroup | tuple[PromptLike, Sequence[str]]


def one_call(
    path: str, request: Message, response_type: type[M], read: Callable[[M], T], *, may_hedge: bool = False
) -> Call[T]:
    """Return the call of one RPC. ``read`` raises ValueError or OverflowError for a reply that it cannot read."""

    def read_or_refuse(response: Message) -> T:
        try:
            return read(cast(M, response))
        except (ValueError, OverflowError) as error:  # such as a time that no calendar has
            raise InvalidReply(f"the reply of {path} cannot be read: {error}") from error

    return Call(path, request, response_type, read_or_refuse, path in REPEATABLE, may_hedge)


def score(request: reward_pb2.ScoreRequest) -> Call[ScoreResult]:
    """May be hedged: a second run of the engine costs less than a user who waits."""

    def read(response: reward_pb2.ScoreResponse) -> ScoreResult:
        return convert.score_result(response, len(request.responses))

    return one_call(SCORE, request, reward_pb2.ScoreResponse, read, may_hedge=True)


def score_batch(
    groups: Iterable[GroupLike], lane: LaneName, policy: RetryPolicy, timeout_s: float | None
) -> Steps[list[ScoreResult | RewardloopError]]:
    """Return one outcome for each group, in order. A group that no message can hold fails alone and is not sent.

    Groups that one call cannot carry go in several.

    Raises:
        RewardloopError: The first call failed. If a later one fails, that is the outcome of the groups that are left.
    """
    outcomes: list[ScoreResult | RewardloopError | None] = []
    requests = []
    for group in groups:
        try:
            requests.append(convert.group_request(group, lane))
            outcomes.append(None)
        except InvalidRequest as error:
            outcomes.append(error)
    answers = iter((yield from in_parts(requests, timeout_s, lambda part, s: steps_of(_score_part(part), policy, s))))
    return [next(answers) if outcome is None else outcome for outcome in outcomes]


def _score_part(requests: Sequence[reward_pb2.ScoreRequest]) -> Call[list[ScoreResult | RewardloopError]]:
    def read(response: reward_pb2.ScoreBatchResponse) -> list[ScoreResult | RewardloopError]:
        return convert.score_outcomes(response, [len(request.responses) for request in requests])

    return one_call(SCORE_BATCH, reward_pb2.ScoreBatchRequest(groups=requests), reward_pb2.ScoreBatchResponse, read)


def in_parts(
    items: Sequence[M],
    timeout_s: float | None,
    steps: Callable[[Sequence[M], float | None], Steps[list[T | RewardloopError]]],
) -> Steps[list[T | RewardloopError]]:
    """Send all items in as many calls as a server's default bounds on items and bytes ask for.

    Returns:
        One outcome for each item, in order. After the first call, the failure of a call is the outcome of the items
        that are left.

    Raises:
        RewardloopError: The first call failed.
    """
    time_left = Attempts(RetryPolicy(), timeout_s)
    outcomes: list[T | RewardloopError] = []
    for part in _parts(items):
        try:
            outcomes += yield from steps(part, time_left.remaining_s())
        except RewardloopError as error:
            if not outcomes:
                raise
            return outcomes + [error] * (len(items) - len(outcomes))
    return outcomes


def _parts(items: Sequence[M]) -> Iterator[list[M]]:
    part: list[M] = []
    size = 0
    for item in items:
        of_item = item.ByteSize()
        if part and (len(part) == _MOST_ITEMS or size + of_item > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += of_item
    if part:
        yield part


def record(event: feedback_pb2.FeedbackEvent) -> Call[RecordResult]:
    """Safe to repeat: the server recognises an event_id that it has recorded."""
    request = feedback_pb2.RecordRequest(event=event)
    return one_call(RECORD, request, feedback_pb2.RecordResponse, convert.record_result)


def record_batch(
    events: Iterable[feedback_pb2.FeedbackEvent], policy: RetryPolicy, timeout_s: float | None
) -> Steps[list[RecordResult | RewardloopError]]:
    """Send all events, then those again that failed for a passing reason. What one call cannot carry takes several.

    Returns:
        One outcome for each event, in order.

    Raises:
        RewardloopError: No attempt was answered. After the first answer a failure is the outcome of its events.
    """
    return in_parts(list(events), timeout_s, lambda part, s: _record_part(part, policy, s))


def _record_part(
    sent: Sequence[feedback_pb2.FeedbackEvent], policy: RetryPolicy, timeout_s: float | None
) -> Steps[list[RecordResult | RewardloopError]]:
    outcomes: list[RecordResult | RewardloopError | None] = [None] * len(sent)
    pending = list(range(len(sent)))
    attempts = Attempts(policy, timeout_s)
    answered = False
    while pending:
        is_item = False
        request = feedback_pb2.RecordBatchRequest(events=[sent[i] for i in pending])
        try:
            response = yield Send(RECORD_BATCH, request, feedback_pb2.RecordBatchResponse, attempts.remaining_s())
            items = cast(feedback_pb2.RecordBatchResponse, response).items
            convert.check_items(len(items), len(pending))
            answered = True
            for index, item in zip(pending, items, strict=True):
                outcomes[index] = convert.record_outcome(item)
            pending = [i for i in pending if _may_pass(outcomes[i])]
            if pending:
                is_item = True
                raise cast(RewardloopError, outcomes[pending[0]])
        except RewardloopError as error:
            try:
                pause = attempts.pause_after(error, was_seen_by_grpc=not is_item)
            except RewardloopError:
                if not answered:
                    raise
                break
            yield Pause(pause)
    else:
        attempts.restart()
    return [cast("RecordResult | RewardloopError", outcome) for outcome in outcomes]


def _may_pass(outcome: object) -> bool:
    return isinstance(outcome, RewardloopError) and outcome.may_retry


def retract(import_id: str) -> Call[str]:
    """Safe to repeat: an import that has been taken back has nothing left to take back."""
    request = feedback_pb2.RetractRequest(import_id=convert.text_field("import_id", import_id))
    return one_call(RETRACT, request, feedback_pb2.RetractResponse, lambda response: str(response.stream_id))


def erase(annotator_id: str, generation_id: str, erasure_id: str, caller: str | None) -> Call[ErasureProgress]:
    """Safe to repeat: what is under way for the same person is not begun again. Raises InvalidRequest."""
    given = _whose(annotator_id=annotator_id, generation_id=generation_id, erasure_id=erasure_id)
    request = feedback_pb2.EraseRequest(**given, caller=_caller(caller))
    return one_call(ERASE, request, feedback_pb2.EraseResponse, convert.erasure_progress)


def taught_versions(annotator_id: str, generation_id: str, caller: str | None) -> Call[TaughtVersions]:
    """Safe to repeat: it changes nothing. Raises InvalidRequest."""
    given = _whose(annotator_id=annotator_id, generation_id=generation_id)
    request = feedback_pb2.ListTaughtVersionsRequest(**given, caller=_caller(caller))
    return one_call(LIST_TAUGHT_VERSIONS, request, feedback_pb2.ListTaughtVersionsResponse, convert.taught_versions)


def _whose(**named: str) -> dict[str, str]:
    """Return the one field that is not empty. Raises InvalidRequest."""
    given = {field: convert.text_field(field, text) for field, text in named.items() if text}
    if len(given) != 1:
        raise convert.invalid("whose", f"one of {', '.join(named)} must be given, not {len(given)}")
    return given


def _caller(caller: str | None) -> str | None:
    return None if caller is None else convert.text_field("caller", caller)


def generate(request: policy_pb2.GenerateRequest) -> Call[Generation]:
    """Safe to repeat: at worst the server logs a generation that nobody reads."""

    def read(response: policy_pb2.GenerateResponse) -> Generation:
        return convert.generation(response, request.candidates)

    return one_call(GENERATE, request, policy_pb2.GenerateResponse, read)


def stream_event(
    reply: policy_pb2.GenerateStreamResponse, request: policy_pb2.GenerateRequest
) -> CandidateText | Generation:
    """Read a message of GenerateStream. Raises InvalidReply."""
    if reply.HasField("end"):
        return convert.generation(reply.end, request.candidates)
    return convert.candidate_text(reply, request.candidates)


def list_versions(model: str) -> Call[list[VersionInfo]]:
    def read(response: model_pb2.ListVersionsResponse) -> list[VersionInfo]:
        return [convert.version_info(info) for info in response.versions]

    request = model_pb2.ListVersionsRequest(model=convert.text_field("model", model))
    return one_call(LIST_VERSIONS, request, model_pb2.ListVersionsResponse, read)


def models() -> Call[tuple[str, ...]]:
    """Return the models of which a server can be asked. A server of an earlier release names none."""

    def read(response: model_pb2.ListVersionsResponse) -> tuple[str, ...]:
        return tuple(response.models) or MODELS

    return one_call(LIST_VERSIONS, model_pb2.ListVersionsRequest(model=REWARD), model_pb2.ListVersionsResponse, read)


def get_version(model: str, version: str) -> Call[VersionInfo]:
    def read(response: model_pb2.GetVersionResponse) -> VersionInfo:
        return convert.version_info(response.version)

    request = model_pb2.GetVersionRequest(
        model=convert.text_field("model", model), version=convert.text_field("version", version)
    )
    return one_call(GET_VERSION, request, model_pb2.GetVersionResponse, read)


def promote(model: str, version: str, reason: str, leader_epoch: int, expected_version: str | None) -> Call[Promotion]:
    """Safe to repeat: promoting the active version changes nothing."""
    request = model_pb2.PromoteRequest(
        model=convert.text_field("model", model),
        version=convert.text_field("version", version),
        reason=convert.text_field("reason", reason),
        leader_epoch=leader_epoch,
        expected_version=_expected(expected_version),
    )
    return one_call(PROMOTE, request, model_pb2.PromoteResponse, convert.promotion)


def rollback(model: str, reason: str, expected_version: str | None) -> Call[Promotion]:
    """Not safe to repeat: a second rollback goes back one version further."""
    request = model_pb2.RollbackRequest(
        model=convert.text_field("model", model),
        reason=convert.text_field("reason", reason),
        expected_version=_expected(expected_version),
    )
    return one_call(ROLLBACK, request, model_pb2.RollbackResponse, convert.promotion)


def _expected(version: str | None) -> str | None:
    return None if version is None else convert.text_field("expected_version", version)


def set_canary(
    model: str, version: str, share: float, reason: str, expected_version: str | None
) -> Call[VersionInfo | None]:
    fields = model, version, share, reason, expected_version
    return _set_role(SET_CANARY, model_pb2.SetCanaryRequest, model_pb2.SetCanaryResponse, *fields)


def set_shadow(
    model: str, version: str, share: float, reason: str, expected_version: str | None
) -> Call[VersionInfo | None]:
    fields = model, version, share, reason, expected_version
    return _set_role(SET_SHADOW, model_pb2.SetShadowRequest, model_pb2.SetShadowResponse, *fields)


def _set_role(
    method: str,
    request_type: type[model_pb2.SetCanaryRequest] | type[model_pb2.SetShadowRequest],
    response_type: type[model_pb2.SetCanaryResponse] | type[model_pb2.SetShadowResponse],
    model: str,
    version: str,
    share: float,
    reason: str,
    expected_version: str | None,
) -> Call[VersionInfo | None]:
    """Safe to repeat: the same version and share again change nothing."""
    with convert.building("share"):
        request = request_type(
            model=convert.text_field("model", model),
            version=convert.text_field("version", version),
            share=share,
            reason=convert.text_field("reason", reason),
            expected_version=_expected(expected_version),
        )
    return one_call(method, request, response_type, convert.version_or_none)


def get_identity() -> Call[Identity]:
    return one_call(GET_IDENTITY, access_pb2.GetIdentityRequest(), access_pb2.GetIdentityResponse, convert.identity)


def health(service: str) -> Call[bool]:
    def read(response: health_pb2.HealthCheckResponse) -> bool:
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    request = health_pb2.HealthCheckRequest(service=convert.text_field("service", service))
    return one_call(HEALTH_CHECK, request, health_pb2.HealthCheckResponse, read)


def wait_until_active(model: str, version: str, timeout_s: float | None) -> Steps[VersionInfo]:
    """Ask again until the server serves ``version`` or the time is over, through failures that may pass."""
    attempts = Attempts(RetryPolicy(max_attempts=2**31), timeout_s)
    call = get_version(model, "")
    while True:
        try:
            response = yield Send(call.path, call.request, call.response_type, attempts.remaining_s())
        except NotFound:
            response = None  # nothing is active yet
        except RewardloopError as error:
            yield Pause(attempts.pause_after(error))
            continue
        if response is not None and (active := call.read(response)).version == version:
            return active
        attempts.restart()
        yield Pause(_POLL_S)


class StreamIds:
    """Gives each request of a score stream its id, and returns the outcomes in the order of the requests.

    `request` may run in another thread than the other methods.
    """

    def __init__(self, lane: LaneName) -> None:
        self._lane = lane
        self._numbers = itertools.count()
        self._responses: dict[str, int] = {}  # by the id of each request that has no reply yet
        self._waiting: dict[int, ScoreResult | RewardloopError] = {}
        self._next = 0

    def request(self, group: GroupLike) -> reward_pb2.ScoreStreamRequest | None:
        """Return the message for the next group. If none can hold the group, keep the error as its outcome: None."""
        number = next(self._numbers)
        try:
            request = convert.group_request(group, self._lane)
        except InvalidRequest as error:
            self._waiting[number] = error
            return None
        self._responses[str(number)] = len(request.responses)
        return reward_pb2.ScoreStreamRequest(request_id=str(number), request=request)

    def take(self, reply: reward_pb2.ScoreStreamResponse) -> None:
        """Keep a reply until its turn comes. Raises InvalidReply if no request waits for it."""
        responses = self._responses.pop(reply.request_id, None)
        if responses is None:
            raise InvalidReply(f"request_id {reply.request_id!r} is that of no request without a reply")
        self._waiting[int(reply.request_id)] = convert.score_outcome(reply, responses)

    def check_all_answered(self) -> None:
        """Raise InvalidReply if the stream ended before each request had its reply."""
        if self._responses:
            raise InvalidReply(f"the stream ended without a reply to {len(self._responses)} group(s)")

    def due(self) -> Iterator[ScoreResult | RewardloopError]:
        """Yield the outcomes that are next in the order of the requests."""
        while self._next in self._waiting:
            self._next += 1
            yield self._waiting.pop(self._next - 1)
