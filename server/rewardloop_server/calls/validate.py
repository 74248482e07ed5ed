"""validate: checks requests before anything is done with them. Pure functions that find every violation.

A description names limits and counts, never the caller's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardloop.formats.messages import tool_problems
from rewardloop.formats.signals import MOST_RESPONSES, signal_problems
from rewardloop.formats.vocabulary import ROLES
from rewardloop.v1 import common_pb2, feedback_pb2, reward_pb2
from rewardloop_server.calls.errors import InvalidRequest, Violation

_SOURCES = frozenset(feedback_pb2.Source.values())
_LANES = frozenset(common_pb2.Lane.values())
_TRUNCATIONS = frozenset(reward_pb2.Truncation.values())
_SET_BY_SERVER = ("arrival_time", "policy_version", "shown", "task")
_MAX_EPOCH_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second of a protobuf Timestamp


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests: of texts in UTF-8 bytes, of events in encoded bytes, of ids and tags in characters.

    ``max_text_bytes`` bounds each text, and all JSON in the tools and tool calls of a prompt together.
    """

    max_text_bytes: int = 262_144
    max_responses: int = 256
    max_feedback_responses: int = MOST_RESPONSES
    max_event_bytes: int = 2**20
    max_messages: int = 256
    max_id_chars: int = 128
    max_tags: int = 16
    max_tag_chars: int = 64


def validate_prompt(prompt: common_pb2.Prompt, field: str, limits: Limits, violations: list[Violation]) -> None:
    """Append every violation of ``prompt``, whose path in the request is ``field``, to ``violations``."""
    kind = prompt.WhichOneof("content")
    if kind is None:
        violations.append(Violation(field, "neither text nor a conversation is set"))
    elif kind == "text":
        _check_text(prompt.text, f"{field}.text", limits, violations)
        if not prompt.tools_json:  # as nearly always
            return
    else:
        _check_conversation(prompt.conversation.messages, f"{field}.conversation.messages", limits, violations)
    problems = tool_problems(prompt, limits.max_text_bytes)
    violations.extend(Violation(f"{field}.{path}", problem) for path, problem in problems)


def validate_score(request: reward_pb2.ScoreRequest, limits: Limits) -> None:
    """Check a group to score. Raises InvalidRequest with every violation."""
    violations: list[Violation] = []
    validate_prompt(request.prompt, "prompt", limits, violations)
    _check_responses(request.responses, limits.max_responses, limits, violations)
    if request.lane not in _LANES:
        violations.append(Violation("lane", "not a known lane"))
    if request.truncation not in _TRUNCATIONS:
        violations.append(Violation("truncation", "not a known choice"))
    if request.reference and _is_too_long(request.reference, limits):
        violations.append(Violation("reference", f"more than {limits.max_text_bytes} bytes"))
    if request.HasField("pin_version") and not 1 <= len(request.pin_version) <= limits.max_id_chars:
        violations.append(Violation("pin_version", f"1 to {limits.max_id_chars} characters when set"))
    if violations:
        raise InvalidRequest(violations)


def validate_event(event: feedback_pb2.FeedbackEvent, limits: Limits, size: int | None = None) -> None:
    """Check a signal as its caller sent it. Raises InvalidRequest with every violation.

    ``size`` is its encoded bytes, if they are known; protobuf encodes it to know them.

    If it names a generation_id, the responses are not known yet. `validate_signal` checks what depends on them once
    they are filled in.
    """
    violations: list[Violation] = []
    _check_size(event.ByteSize() if size is None else size, limits)
    event_id, generation_id = event.event_id, event.generation_id
    if not event_id:
        violations.append(Violation("event_id", "missing"))
    most = limits.max_id_chars
    for field, text in (("event_id", event_id), ("generation_id", generation_id), ("annotator_id", event.annotator_id)):
        if len(text) > most:
            violations.append(Violation(field, f"more than {most} characters"))
    if event.source not in _SOURCES:
        violations.append(Violation("source", "not a known source"))
    if event.tags:
        _check_tags(event, limits, violations)
    if event.HasField("event_time") and not _is_timestamp(event.event_time.seconds, event.event_time.nanos):
        violations.append(Violation("event_time", "not between the years 1 and 9999"))
    has = event.HasField
    for field in _SET_BY_SERVER:
        if has(field):
            violations.append(Violation(field, "set by the server"))
    if event.response_versions:
        violations.append(Violation("response_versions", "set by the server"))
    if event.caller:
        violations.append(Violation("caller", "set by the server"))

    if generation_id:
        if event.HasField("prompt"):
            violations.append(Violation("prompt", "must be left out with a generation_id: the server fills it in"))
        if event.responses:
            violations.append(Violation("responses", "must be left out with a generation_id: the server fills them in"))
        _check_signal(event, None, limits, violations)
    else:
        validate_prompt(event.prompt, "prompt", limits, violations)
        _check_responses(event.responses, limits.max_feedback_responses, limits, violations)
        _check_signal(event, event.responses, limits, violations)
    if violations:
        raise InvalidRequest(violations)


def validate_signal(event: feedback_pb2.FeedbackEvent, limits: Limits) -> None:
    """Check a signal against responses that were filled in from a generation. Raises InvalidRequest."""
    violations: list[Violation] = []
    _check_size(event.ByteSize(), limits)
    _check_signal(event, event.responses, limits, violations)
    if violations:
        raise InvalidRequest(violations)


def within(error: InvalidRequest, prefix: str) -> InvalidRequest:
    """Return the same violations with paths from the request that holds the checked message at ``prefix``."""
    return InvalidRequest([Violation(f"{prefix}.{v.field}", v.description) for v in error.violations])


def _check_text(text: str, field: str, limits: Limits, violations: list[Violation]) -> None:
    if (problem := _text_problem(text, limits)) is not None:
        violations.append(Violation(field, problem))


def _text_problem(text: str, limits: Limits) -> str | None:
    if not text or text.isspace():
        return "empty"
    return f"more than {limits.max_text_bytes} bytes" if _is_too_long(text, limits) else None


def _is_too_long(text: str, limits: Limits) -> bool:
    # A character is 1 to 4 bytes, so most texts need not be encoded to know.
    most = limits.max_text_bytes
    return len(text) > most or (len(text) * 4 > most and len(text.encode()) > most)


def _check_conversation(
    messages: Sequence[common_pb2.Message], field: str, limits: Limits, violations: list[Violation]
) -> None:
    if not messages:
        violations.append(Violation(field, "no message"))
        return
    if len(messages) > limits.max_messages:
        violations.append(Violation(field, f"more than {limits.max_messages} messages"))
        return
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            violations.append(Violation(f"{field}[{i}].role", f"not one of {', '.join(ROLES)}"))
        if not message.tool_calls or (message.content and not message.content.isspace()):
            _check_text(message.content, f"{field}[{i}].content", limits, violations)
    if messages[-1].role == "assistant":
        violations.append(Violation(f"{field}[{len(messages) - 1}].role", "the last message is the assistant's"))


def _check_responses(responses: Sequence[str], most: int, limits: Limits, violations: list[Violation]) -> None:
    if not 1 <= len(responses) <= most:
        violations.append(Violation("responses", f"1 to {most} responses, not {len(responses)}"))
        return
    for i, response in enumerate(responses):
        if (problem := _text_problem(response, limits)) is not None:
            violations.append(Violation(f"responses[{i}]", problem))


def _check_size(size: int, limits: Limits) -> None:
    """Raise InvalidRequest for an event above the bound, before anything walks through it."""
    if size > limits.max_event_bytes:
        raise InvalidRequest([Violation("", f"the event has {size} bytes, more than {limits.max_event_bytes}")])


def _check_tags(event: feedback_pb2.FeedbackEvent, limits: Limits, violations: list[Violation]) -> None:
    if len(event.tags) > limits.max_tags:
        violations.append(Violation("tags", f"more than {limits.max_tags} tags"))
        return
    tags, most = event.tags, limits.max_tag_chars
    longest_value = 0
    are_keys_sound = True
    for key in tags:  # not by items(), which protobuf answers in Python
        are_keys_sound = are_keys_sound and 1 <= len(key) <= most
        longest_value = max(longest_value, len(tags[key]))
    if not are_keys_sound:
        violations.append(Violation("tags", f"a key is not 1 to {most} characters long"))
    if longest_value > most:
        violations.append(Violation("tags", f"a value is longer than {most} characters"))


def _is_timestamp(seconds: int, nanos: int) -> bool:
    return -62_135_596_800 <= seconds <= _MAX_EPOCH_SECONDS and 0 <= nanos < 1_000_000_000


def _check_signal(
    event: feedback_pb2.FeedbackEvent, responses: Sequence[str] | None, limits: Limits, violations: list[Violation]
) -> None:
    """Append every violation of the signal. ``responses`` is None if they are not known yet."""
    if problems := signal_problems(event, responses):
        violations.extend(Violation(field, problem) for field, problem in problems)
    if event.HasField("edit") and _is_too_long(event.edit.edited_text, limits):
        violations.append(Violation("edit.edited_text", f"more than {limits.max_text_bytes} bytes"))
