"""Turns rows of the usual preference data sets into feedback events, without I/O.

| row | signals |
| --- | --- |
| ``{prompt, chosen, rejected}``, texts or lists of ``{role, content}`` | one choice |
| ``{chosen, rejected}``, two whole conversations with the same beginning | one choice |
| ``{prompt, responses, chosen: index}`` | one choice against each other response |
| ``{prompt, responses, ranking}``, all indices, best first | one ranking |
| ``{prompt, responses, annotations: [{annotator, choice: 0, 1 or "tie"}]}`` | a choice or tie for each annotation |
| ``{prompt, response_1, response_2, preference_strength}``, from -3 (the first is better) to 3 | a choice or a tie |
| ``{context, response1, response2, overall_preference}``, the same with a list of messages | a choice or a tie |
| ``{prompt, completion, label}`` | one thumb |
| ``{prompt, response, up, down}``, numbers of votes | a thumb for each vote |

``annotator`` becomes the annotator's id. ``strength`` beside ``chosen`` and ``rejected``, above 0 and at most 1,
becomes the strength of the choice. ``aspect`` names the reward model that learns from the row. Other keys are ignored.

Turns may have ``tool_calls``, ``name`` and ``tool_call_id``, and ``tools`` beside the prompt lists the functions that
may be called, as Hugging Face's data sets have them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias, TypeGuard

from rewardloop.formats.messages import MessageError, Turn, prompt_of, tools_of, tools_turn, turn_of
from rewardloop.formats.mixing.names import is_name
from rewardloop.formats.vocabulary import ROLES
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_client import Feedback, InvalidRequest
from rewardloop_client._feedback import Context
from rewardloop_client._types import SourceName

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Turns: TypeAlias = tuple[Turn, ...]

MAX_VOTES = 1000
_STRONGEST = 3  # HelpSteer's grades go from -3 to 3


class RowError(ValueError):
    """Raised for a row that is not a preference signal. The message says why."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The source and the tags that every event of an import gets, and the aspect of those whose row names none."""

    source: SourceName = "human"
    tags: Mapping[str, str] | None = None
    aspect: str = ""


@dataclass(frozen=True, slots=True)
class _PreferenceRow:
    """The content of a row without nulls, and the sha256 of that content."""

    content: dict[str, Json]
    labels: Labels
    digest: str

    def context(self, number: int, prompt: Turns, responses: Sequence[str], annotator: Json) -> Context:
        # A file that is imported for another aspect gives other signals.
        labelled = f"-{self.labels.aspect}" if self.labels.aspect else ""
        return {
            "prompt": _message(prompt),
            "responses": responses,
            "event_id": f"{self.digest}-{number}{labelled}",
            "annotator_id": "" if annotator is None else _annotator(annotator),
            "source": self.labels.source,
            "tags": self.labels.tags or {},
            "aspect": self._aspect(),
        }

    def _aspect(self) -> str:
        aspect = self.content.get("aspect", self.labels.aspect)
        if not isinstance(aspect, str):
            raise RowError(f"aspect: is {kind_of(aspect)}, not text")
        if aspect and not is_name(aspect):
            raise RowError(f"aspect: {_short(aspect)} is no name of a reward model")
        return aspect


def parse_line(line: bytes) -> Json:
    """Return the JSON value of a line. Raises RowError, also for NaN and infinities, which are not JSON."""

    def refuse(name: str) -> NoReturn:
        raise RowError(f"{name} is not a JSON number")

    try:
        value: Json = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise RowError(f"is not JSON: {error.msg} (character {error.pos})") from error
    except RecursionError as error:
        raise RowError("is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"is not JSON: {error}") from error  # an integer of thousands of digits
    return value


def events_of(row: Json, labels: Labels) -> list[feedback_pb2.FeedbackEvent]:
    """Return the signals of one row.

    An ``event_id`` is the sha256 of the row's content with the number of the signal within the row, so that the server
    recognises a row that is imported again.

    Raises:
        RowError: The row is no signal. No other exception is raised.
    """
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    content: dict[str, Json] = {
        key: value for key, value in row.items() if value is not None
    }  # Parquet: an absent column is null
    try:
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(canonical.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise RowError("holds text that is not valid Unicode (a lone surrogate)") from error
    except (ValueError, TypeError, RecursionError) as error:  # NaN, or a Parquet value that JSON does not know
        raise RowError(f"holds a value that is not JSON: {error}") from error
    for keys, read in _FORMS:
        if all(key in content for key in keys):
            try:
                made = list(read(_PreferenceRow(content, labels, digest)))
            except InvalidRequest as error:
                raise RowError(str(error)) from error
            if not made:
                raise RowError("holds no signal")
            return made
    raise RowError(f"has no known form: its keys are {', '.join(sorted(content)[:8]) or 'none'}")


def _annotations(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    prompt, responses = _prompt(row), _responses(row)
    annotations = row.content["annotations"]
    if len(responses) != 2 or not isinstance(annotations, list):
        raise RowError("annotations: need a list, and two responses")
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            raise RowError(f"annotations[{i}]: is {kind_of(annotation)}, not an object")
        choice = annotation.get("choice")
        context = row.context(i, prompt, responses, annotation.get("annotator"))
        if choice == "tie":
            yield Feedback.tie(first=0, second=1, **context)
        elif _is_int(choice) and choice in (0, 1):
            yield Feedback.choice(chosen=choice, rejected=1 - choice, **context)
        else:
            raise RowError(f"annotations[{i}].choice: is {_short(choice)}, not 0, 1 or 'tie'")


def _ranking(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    responses, order = _responses(row), row.content["ranking"]
    if not isinstance(order, list):
        raise RowError("ranking: is not a list of indices")
    indices = [index for index in order if _is_int(index)]
    if len(order) < 2 or len(indices) < len(order) or sorted(indices) != list(range(len(responses))):
        raise RowError(f"ranking: is not an order of all {len(responses)} responses (two or more)")
    context = row.context(0, _prompt(row), responses, row.content.get("annotator"))
    yield Feedback.ranking(order=indices, **context)


def _chosen_index(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    prompt, responses, chosen = _prompt(row), _responses(row), row.content["chosen"]
    if not _is_int(chosen) or not 0 <= chosen < len(responses):
        raise RowError(f"chosen: is {_short(chosen)}, not an index of {len(responses)} responses")
    others = [i for i in range(len(responses)) if i != chosen]
    for number, rejected in enumerate(others):
        context = row.context(number, prompt, responses, row.content.get("annotator"))
        yield Feedback.choice(chosen=chosen, rejected=rejected, **context)


def _pair(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    chosen, rejected = row.content["chosen"], row.content["rejected"]
    if "prompt" in row.content:
        prompt = _prompt(row)
    else:
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise RowError("prompt: is absent")
        said = _common_start(messages_of("chosen", chosen), messages_of("rejected", rejected))
        prompt = (*tools_in(row.content), *said)
    texts = [completion_of("chosen", chosen, prompt), completion_of("rejected", rejected, prompt)]
    if texts[0] == texts[1]:
        raise RowError("chosen and rejected are the same")
    context = row.context(0, prompt, texts, row.content.get("annotator"))
    yield Feedback.choice(chosen=0, rejected=1, strength=_strength(row), **context)


def _strength(row: _PreferenceRow) -> float | None:
    value = row.content.get("strength")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise RowError(f"strength: is {_short(value)}, not above 0 and at most 1")
    return float(value)


def _graded(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    """Read HelpSteer's rows: a grade from -3 to 3, below 0 if the first response is better."""
    by_context = "context" in row.content
    names = ("response1", "response2") if by_context else ("response_1", "response_2")
    key = "overall_preference" if by_context else "preference_strength"
    prompt = turns_of("context", row.content["context"]) if by_context else _prompt(row)
    grade, texts = row.content[key], [text_of(name, row.content[name]) for name in names]
    if not _is_int(grade) or abs(grade) > _STRONGEST:
        raise RowError(f"{key}: is {_short(grade)}, not a whole number from -{_STRONGEST} to {_STRONGEST}")
    if texts[0] == texts[1]:
        raise RowError("the responses are the same")
    context = row.context(0, prompt, texts, row.content.get("annotator"))
    if grade == 0:
        yield Feedback.tie(first=0, second=1, **context)
        return
    better = int(grade > 0)
    yield Feedback.choice(chosen=better, rejected=1 - better, strength=abs(grade) / _STRONGEST, **context)


def _labelled(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    prompt, label = _prompt(row), row.content["label"]
    if label not in (True, False):  # 1 and 0 equal these, and count as labels
        raise RowError(f"label: is {_short(label)}, not true or false")
    text = completion_of("completion", row.content["completion"], prompt)
    context = row.context(0, prompt, [text], row.content.get("annotator"))
    yield Feedback.thumb(up=bool(label), response=0, **context)


def _votes(row: _PreferenceRow) -> Iterator[feedback_pb2.FeedbackEvent]:
    prompt = _prompt(row)
    text = completion_of("response", row.content["response"], prompt)
    counts = []
    for key in ("up", "down"):
        count = row.content.get(key, 0)
        if not isinstance(count, int) or not 0 <= count <= MAX_VOTES:
            raise RowError(f"{key}: is {_short(count)}, not a number of votes (0..{MAX_VOTES})")
        counts.append(int(count))
    for number, up in enumerate([True] * counts[0] + [False] * counts[1]):
        context = row.context(number, prompt, [text], row.content.get("annotator"))
        yield Feedback.thumb(up=up, response=0, **context)


_FORMS: tuple[tuple[tuple[str, ...], Callable[[_PreferenceRow], Iterator[feedback_pb2.FeedbackEvent]]], ...] = (
    (("responses", "annotations"), _annotations),
    (("responses", "ranking"), _ranking),
    (("responses", "chosen"), _chosen_index),
    (("chosen", "rejected"), _pair),
    (("response_1", "response_2", "preference_strength"), _graded),
    (("context", "response1", "response2", "overall_preference"), _graded),
    (("completion", "label"), _labelled),
    (("response", "up"), _votes),
    (("response", "down"), _votes),
)


def turns_of(field: str, value: Json, tools: Json = None) -> Turns:
    """Return the turns of a prompt, after the list of its tools if it has any. A text is one user turn.

    Raises:
        RowError: They have another form.
    """
    listed = tools_in({"tools": tools})
    if isinstance(value, list):
        turns = messages_of(field, value)
        if turns[-1].role == "assistant":
            raise RowError(f"{field}: ends with the assistant's turn")
        return (*listed, *turns)
    return (*listed, Turn("user", text_of(field, value)))


def tools_in(row: Mapping[str, Json]) -> Turns:
    """Return the turn that lists the tools of a row; none if it has no tools. Raises RowError."""
    try:
        listed = tools_turn(row.get("tools"))
    except MessageError as error:
        raise RowError(f"tools{error.field}: {error.problem}") from error
    return () if listed is None else (listed,)


def text_of(field: str, value: Json) -> str:
    """Return ``value`` if it is a text that is not empty. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{field}: is {kind_of(value)}, not text")
    if not value.strip():
        raise RowError(f"{field}: is empty")
    return value


def _prompt(row: _PreferenceRow) -> Turns:
    if "prompt" not in row.content:
        raise RowError("prompt: is absent")
    return turns_of("prompt", row.content["prompt"], row.content.get("tools"))


def _responses(row: _PreferenceRow) -> list[str]:
    responses = row.content["responses"]
    if not isinstance(responses, list) or not responses:
        raise RowError("responses: is not a list of texts")
    return [text_of(f"responses[{i}]", text) for i, text in enumerate(responses)]


def messages_of(field: str, value: list[Json]) -> Turns:
    """Return the turns of a conversation. Raises RowError."""
    if not value:
        raise RowError(f"{field}: is empty")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or "role" not in turn or not {"content", "tool_calls"} & turn.keys():
            raise RowError(f"{field}[{i}]: is not a {{role, content}} message")
        role = turn["role"]
        if role not in ROLES:
            raise RowError(f"{field}[{i}].role: is {_short(role)}, not one of {', '.join(ROLES)}")
        try:
            turns.append(turn_of(turn))
        except MessageError as error:
            raise RowError(f"{field}[{i}]{f'.{error.field}' if error.field else ''}: {error.problem}") from error
        if not turns[-1].tool_calls:
            text_of(f"{field}[{i}].content", turns[-1].content)
        elif role != "assistant":
            raise RowError(f"{field}[{i}].tool_calls: the role is {_short(role)}, not assistant")
    return tuple(turns)


def completion_of(field: str, value: Json, prompt: Turns) -> str:
    """Return the assistant's one turn after the prompt. ``value`` may repeat the prompt. Raises RowError."""
    if not isinstance(value, list):
        return text_of(field, value)
    turns, said = messages_of(field, value), tuple(tools_of(prompt)[1])
    if turns[: len(said)] == said:
        turns = turns[len(said) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(f"{field}: is not one assistant's turn after the prompt")
    if turns[0].tool_calls:
        raise RowError(f"{field}: calls a tool, and only the text of a turn can be judged")
    return turns[0].content


def _common_start(chosen: Turns, rejected: Turns) -> Turns:
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == 0:
        raise RowError("chosen and rejected do not begin with the same prompt")
    if same == len(chosen) == len(rejected):
        raise RowError("chosen and rejected are the same")
    if chosen[same - 1].role == "assistant":
        raise RowError("chosen and rejected do not differ in an assistant's turn")
    return chosen[:same]


def _message(prompt: Turns) -> common_pb2.Prompt:
    try:
        return prompt_of(prompt)
    except ValueError as error:  # text that is not valid Unicode
        raise RowError("prompt: holds text that is not valid Unicode (a lone surrogate)") from error


def _annotator(value: Json) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError(f"annotator: is {kind_of(value)}, not text")
    return str(value)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "absent" if value is None else names.get(type(value), type(value).__name__)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
