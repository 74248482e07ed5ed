"""Turns Python values into messages and back, without I/O. Both clients and the fake share it.

A value that a message cannot hold is refused here as InvalidRequest. The server enforces the rules of content. A reply
that breaks the contract is refused as InvalidReply.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import cast

from google.protobuf import timestamp_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from rewardloop.formats.messages import TOOLS, MessageError, Turn, conversation_prompt, tools_turn, turn_of
from rewardloop.formats.vocabulary import ROLES
from rewardloop.v1 import access_pb2, common_pb2, feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client._errors import InvalidReply, InvalidRequest, RewardloopError, Violation, from_status
from rewardloop_client._types import (
    Candidate,
    CandidateText,
    Chosen,
    ErasureHolder,
    ErasureProgress,
    ErasureStateName,
    Evaluation,
    Generation,
    Identity,
    LaneName,
    ModelVersion,
    Promotion,
    PromptLike,
    RecordResult,
    ResponseScore,
    ScoreGroup,
    ScorePart,
    ScoreResult,
    SelectionName,
    SourceName,
    TaughtVersion,
    TaughtVersions,
    Timings,
    TokenLogProbability,
    TruncatedPrompt,
    TruncationName,
    VersionInfo,
)

_LANES = {"production": common_pb2.LANE_PRODUCTION, "trainer": common_pb2.LANE_TRAINER}
_TRUNCATIONS = {"allowed": reward_pb2.TRUNCATION_ALLOWED, "refused": reward_pb2.TRUNCATION_REFUSED}
_SELECTIONS = {
    "best": policy_pb2.SELECTION_BEST,
    "informative": policy_pb2.SELECTION_INFORMATIVE,
    "uniform": policy_pb2.SELECTION_UNIFORM,
}
_SOURCES = {
    "human": feedback_pb2.SOURCE_HUMAN,
    "llm_judge": feedback_pb2.SOURCE_LLM_JUDGE,
    "implicit": feedback_pb2.SOURCE_IMPLICIT,
}


def invalid(field: str, description: str) -> InvalidRequest:
    """Return the error for one field that cannot be sent."""
    return InvalidRequest(f"{field}: {description}", violations=[Violation(field, description)])


@contextmanager
def building(field: str) -> Iterator[None]:
    """Turn protobuf's exceptions about a value into InvalidRequest for ``field``."""
    try:
        yield
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise invalid(field, str(error)) from error


def text_field(field: str, value: str) -> str:
    """Return ``value``. Raises InvalidRequest if it is not text, or cannot be encoded as UTF-8."""
    if not isinstance(value, str):
        raise invalid(field, f"is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid(field, "is not valid Unicode (it holds a lone surrogate)") from error
    return value


def prompt_pb(prompt: PromptLike) -> common_pb2.Prompt:
    """Return the message for a prompt, or the message that was given.

    Args:
        prompt: A text; a list of messages; or ``{"messages": [...], "tools": [...]}`` with the JSON schemas of the
            functions that the assistant may call. A message is ``{"role", "content"}``, and may have ``tool_calls``,
            ``name`` and ``tool_call_id`` as Hugging Face and OpenAI write them. Its content is a text, or a list of
            parts ``{"type": "text", "text"}``, which are joined; beside tool calls it may be absent.
    """
    if isinstance(prompt, common_pb2.Prompt):
        return prompt
    if isinstance(prompt, str):
        return common_pb2.Prompt(text=text_field("prompt", prompt))
    if isinstance(prompt, Mapping):
        if not {"messages"} <= set(prompt) <= {"messages", "tools"}:
            raise invalid("prompt", "is a mapping of other keys than messages and tools")
        return _conversation(prompt["messages"], "prompt.messages", prompt.get("tools"))
    return _conversation(prompt, "prompt", None)


def _conversation(messages: object, field: str, tools: object) -> common_pb2.Prompt:
    """Return the prompt with these messages, which are ``field`` of the call."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise invalid(field, f"is {type(messages).__name__}, not text or a list of messages")
    turns: list[Turn] = []
    try:
        listed = tools_turn(tools)
    except MessageError as error:
        raise invalid(f"prompt.tools{error.field}", error.problem) from error
    for i, message in enumerate(messages):
        place = f"{field}[{i}]"
        if not isinstance(message, Mapping):
            raise invalid(place, "is not a {role, content} message")
        try:
            turn = turn_of(message, strict=True)
        except MessageError as error:
            raise invalid(f"{place}.{error.field}" if error.field else place, error.problem) from error
        if turn.role == TOOLS:  # which stands for the list of tools inside
            raise invalid(f"{place}.role", f"is not one of {', '.join(ROLES)}")
        text_field(f"{place}.content", turn.content)
        turns.append(turn)
    return conversation_prompt([listed, *turns] if listed else turns)


def responses_list(responses: Sequence[str]) -> list[str]:
    """Return the texts as a list. A single string is refused, because it would be read as one response a character."""
    return _texts("responses", responses)


def _texts(field: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise invalid(field, f"is {type(texts).__name__}, not a list of texts")
    return [text_field(f"{field}[{i}]", text) for i, text in enumerate(texts)]


def _named(field: str, names: Mapping[str, int], name: str) -> int:
    if not isinstance(name, str) or name not in names:
        raise invalid(field, f"is {name!r}, not one of {', '.join(names)}")
    return names[name]


def source_pb(source: SourceName) -> feedback_pb2.Source:
    return cast(feedback_pb2.Source, _named("source", _SOURCES, source))


def score_request(
    prompt: PromptLike,
    responses: Sequence[str],
    *,
    truncation: TruncationName,
    pin_version: str | None,
    min_version: int | None,
    lane: LaneName,
    model: str = "",
    reference: str = "",
) -> reward_pb2.ScoreRequest:
    request = reward_pb2.ScoreRequest(
        prompt=prompt_pb(prompt),
        responses=responses_list(responses),
        lane=cast(common_pb2.Lane, _named("lane", _LANES, lane)),
        truncation=cast(reward_pb2.Truncation, _named("truncation", _TRUNCATIONS, truncation)),
    )
    if model:
        request.model = text_field("model", model)
    if reference:
        request.reference = text_field("reference", reference)
    if pin_version is not None:
        request.pin_version = text_field("pin_version", pin_version)
    if min_version is not None:
        with building("min_version"):
            request.min_version = min_version
    return request


def group_request(group: ScoreGroup | tuple[PromptLike, Sequence[str]], lane: LaneName) -> reward_pb2.ScoreRequest:
    """Return the request for one group. ``lane`` applies if the group names none."""
    if not isinstance(group, ScoreGroup):
        group = ScoreGroup(*group)
    return score_request(
        group.prompt,
        group.responses,
        truncation=group.truncation,
        pin_version=group.pin_version,
        min_version=group.min_version,
        model=group.model,
        reference=group.reference,
        lane=group.lane or lane,
    )


def generate_request(  # noqa: PLR0913 - the options of one call
    prompt: PromptLike,
    *,
    candidates: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    max_new_tokens: int,
    best_of: int = 0,
    selection: SelectionName | None = None,
    random_share: float | None = None,
    reward_model: str = "",
    stop: Sequence[str] = (),
    pin_version: str | None = None,
    token_log_probabilities: bool = False,
) -> policy_pb2.GenerateRequest:
    by = policy_pb2.SELECTION_UNSPECIFIED if selection is None else _named("selection", _SELECTIONS, selection)
    with building("generate"):
        return policy_pb2.GenerateRequest(
            prompt=prompt_pb(prompt),
            candidates=candidates,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_new_tokens=max_new_tokens,
            best_of=best_of,
            selection=cast(policy_pb2.Selection, by),
            random_share=random_share,
            reward_model=text_field("reward_model", reward_model),
            stop=_texts("stop", stop),
            pin_version=None if pin_version is None else text_field("pin_version", pin_version),
            token_log_probabilities=token_log_probabilities,
        )


def model_version(version: common_pb2.ModelVersion) -> ModelVersion:
    """Raises InvalidReply for a version without a number."""
    if not version.version:
        raise InvalidReply("the reply names no model version")
    return ModelVersion(version.version, version.digest)


def score_result(response: reward_pb2.ScoreResponse, responses: int) -> ScoreResult:
    """Read the scores of a group that had so many ``responses``. Raises InvalidReply."""
    if len(response.scores) != responses:
        raise InvalidReply(f"the reply has {len(response.scores)} scores for {responses} responses")
    for i, s in enumerate(response.scores):
        _check_finite(f"scores[{i}]", s, "score", "logit", "uncertainty")
    t = response.timings
    return ScoreResult(
        scores=tuple(
            ResponseScore(
                s.score,
                s.logit,
                s.uncertainty,
                s.token_count,
                s.truncated,
                s.meets_floors if s.HasField("meets_floors") else None,
            )
            for s in response.scores
        ),
        model_version=model_version(response.model_version),
        timings=Timings(t.queue_us, t.tokenize_us, t.run_us),
        parts=tuple(_part(part, responses) for part in response.parts),
    )


def _part(part: reward_pb2.ScorePart, responses: int) -> ScorePart:
    """Raises InvalidReply unless the part has a finite value for each response."""
    if len(part.values) != responses or len(part.uncertainties) not in (0, responses):
        raise InvalidReply(f"part {part.name!r} has {len(part.values)} values for {responses} responses")
    if not all(map(math.isfinite, (*part.values, *part.uncertainties, part.weight, part.floor))):
        raise InvalidReply(f"part {part.name!r} has a number that is not finite")
    return ScorePart(
        part.name,
        part.model,
        model_version(part.model_version) if part.HasField("model_version") else None,
        tuple(part.values),
        tuple(part.uncertainties),
        part.weight,
        part.floor if part.HasField("floor") else None,
    )


def _check_finite(where: str, message: Message, *fields: str) -> None:
    """Raise InvalidReply if a field of the message is NaN or infinite. A field that is not set is 0."""
    for field in fields:
        value = getattr(message, field)
        if not math.isfinite(value):
            raise InvalidReply(f"{where}.{field}: is {value}, not a finite number")


def score_outcome(
    item: reward_pb2.ScoreBatchItem | reward_pb2.ScoreStreamResponse, responses: int
) -> ScoreResult | RewardloopError:
    """Read one group of a batch or stream; a wrong reply is InvalidReply for this group alone."""
    outcome = item.WhichOneof("outcome")
    if outcome == "error":
        return from_status(item.error)
    try:
        if outcome is None:
            raise InvalidReply("the reply holds neither a result nor an error")
        return score_result(item.result, responses)
    except InvalidReply as error:
        return error


def score_outcomes(
    response: reward_pb2.ScoreBatchResponse, responses: Sequence[int]
) -> list[ScoreResult | RewardloopError]:
    """Read a batch; ``responses`` counts those of each group. Raises InvalidReply for another number of items."""
    check_items(len(response.items), len(responses))
    return [score_outcome(item, count) for item, count in zip(response.items, responses, strict=True)]


def check_items(found: int, expected: int) -> None:
    """Raise InvalidReply unless a batch's reply has an item for each item of the request."""
    if found != expected:
        raise InvalidReply(f"the reply has {found} items for {expected} of the request")


def record_result(response: feedback_pb2.RecordResponse) -> RecordResult:
    return RecordResult(response.stream_id, response.duplicate, response.erased)


def erasure_progress(response: feedback_pb2.EraseResponse) -> ErasureProgress:
    """Read how far an erasure has come. Raises ValueError for a time that no calendar has."""
    holders = tuple(
        ErasureHolder(
            holder.name,
            cast(ErasureStateName, _name(feedback_pb2.ErasureState, holder.state)),
            dict(holder.erased),
            tuple(holder.notes),
        )
        for holder in response.holders
    )
    asked = response.requested_time.ToDatetime(tzinfo=UTC)
    return ErasureProgress(response.erasure_id, response.done, asked, holders, _taught(response.versions))


def taught_versions(response: feedback_pb2.ListTaughtVersionsResponse) -> TaughtVersions:
    """Read what an erasure would erase. Raises ValueError for a time that no calendar has."""
    looked_at = response.look_time.ToDatetime(tzinfo=UTC) if response.done else None
    return TaughtVersions(response.done, looked_at, response.signals, _taught(response.versions))


def _taught(versions: Iterable[feedback_pb2.TaughtVersion]) -> tuple[TaughtVersion, ...]:
    return tuple(TaughtVersion(each.model, each.version, each.directly) for each in versions)


def record_outcome(item: feedback_pb2.RecordBatchItem) -> RecordResult | RewardloopError:
    outcome = item.WhichOneof("outcome")
    if outcome is None:
        return InvalidReply("the reply holds neither a result nor an error")
    return record_result(item.result) if outcome == "result" else from_status(item.error)


def generation(response: policy_pb2.GenerateResponse, candidates: int) -> Generation:
    """Read the candidates; ``candidates`` is how many were asked for, 0 if the server chose. Raises InvalidReply."""
    if len(response.candidates) != candidates if candidates else not response.candidates:
        raise InvalidReply(f"the reply has {len(response.candidates)} candidates, not {candidates or 'any'}")
    if not response.generation_id:
        raise InvalidReply("the reply has no generation_id")
    for i, candidate in enumerate(response.candidates):
        _check_finite(f"candidates[{i}]", candidate, "log_probability", "score", "uncertainty")
    _check_finite("chosen", response.chosen, "random_share", "set_probability", "expected_information")
    return Generation(
        generation_id=response.generation_id,
        candidates=tuple(
            Candidate(
                c.text,
                c.log_probability,
                c.token_count,
                _name(policy_pb2.FinishReason, c.finish_reason),
                model_version(c.policy_version) if c.HasField("policy_version") else None,
                c.score if c.HasField("score") else None,
                c.uncertainty if c.HasField("uncertainty") else None,
                dict(c.parts),
                tuple(TokenLogProbability(token.text, token.log_probability) for token in c.tokens),
            )
            for c in response.candidates
        ),
        policy_version=model_version(response.policy_version),
        chosen=_chosen(response.chosen) if response.HasField("chosen") else None,
        truncated=(
            TruncatedPrompt(response.truncated.dropped_turns, response.truncated.is_cut)
            if response.HasField("truncated")
            else None
        ),
        prompt_token_count=response.prompt_token_count,
    )


def candidate_text(reply: policy_pb2.GenerateStreamResponse, candidates: int) -> CandidateText:
    """Read a part of a stream's text. Raises InvalidReply for a message without text, or about no candidate."""
    text = reply.text
    if not reply.HasField("text") or not text.text or not reply.generation_id:
        raise InvalidReply("a message of the stream has no text")
    if not 0 <= text.candidate < max(1, candidates):
        raise InvalidReply(f"the stream says something of candidate {text.candidate}, and there are {candidates}")
    return CandidateText(reply.generation_id, text.candidate, text.text)


def _chosen(chosen: policy_pb2.Chosen) -> Chosen:
    return Chosen(
        selection=cast(SelectionName, _name(policy_pb2.Selection, chosen.selection)),
        sampled=chosen.sampled,
        random_share=chosen.random_share,
        is_random=chosen.is_random,
        set_probability=chosen.set_probability,
        expected_information=chosen.expected_information,
        reward_version=model_version(chosen.reward_version),
        reward_model=chosen.reward_model,
        meeting_floors=chosen.meeting_floors if chosen.HasField("meeting_floors") else None,
    )


def version_info(info: model_pb2.VersionInfo) -> VersionInfo:
    """Raises InvalidReply for a version without a number."""
    version = model_version(info.version)
    return VersionInfo(
        model=info.model,
        version=version.version,
        digest=version.digest,
        state=_name(model_pb2.VersionState, info.state),
        parent_version=info.parent_version,
        create_time=info.create_time.ToDatetime(tzinfo=UTC) if info.HasField("create_time") else None,
        metrics=dict(info.metrics),
        manifest_json=info.manifest_json,
        evaluation=_evaluation(info.evaluation) if info.HasField("evaluation") else None,
    )


def _evaluation(found: model_pb2.Evaluation) -> Evaluation:
    moment = found.evaluate_time.ToDatetime(tzinfo=UTC) if found.HasField("evaluate_time") else None
    return Evaluation(moment, found.against, dict(found.figures), found.report_id)


def version_or_none(response: model_pb2.SetCanaryResponse | model_pb2.SetShadowResponse) -> VersionInfo | None:
    return version_info(response.version) if response.HasField("version") else None


def promotion(response: model_pb2.PromoteResponse | model_pb2.RollbackResponse) -> Promotion:
    return Promotion(version_info(response.version), response.previous_version)


def identity(response: access_pb2.GetIdentityResponse) -> Identity:
    return Identity(response.caller, frozenset(response.roles), response.is_open)


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def _name(enum: EnumTypeWrapper, value: int) -> str:
    """Return the last word of the value's name; "unspecified" for a value of a newer server."""
    return enum.Name(value).rsplit("_", 1)[-1].lower() if value in enum.values() else "unspecified"
