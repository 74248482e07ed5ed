"""Reads rows as questions for labellers: a prompt with the responses to judge, or a prompt alone.

What a row says about its responses is left out. A row with a key that is not known is refused, because it may change
what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rewardloop_data.judgements import Judgement
from rewardloop_data.recognise import Reading, content_of, recognise_judged
from rewardloop_data.rows import Json, RowError, Turns, completion_of, kind_of, messages_of, text_of, tools_in, turns_of
from rewardloop_data.shapes.shape import COMMON, HARMLESS, Choices, with_system
from rewardloop_data.source_file import Line

MOST_RESPONSES = 8

_PROMPTS = ("prompt", "messages", "instruction", "question", "input")
_LISTS = ("responses", "completions", "candidates", "answers", "generations")
_ONE = re.compile(r"(?:(?:response|completion|answer|candidate|generation|output)[_-]?(?:\d+|[a-h])?|chosen|rejected)")
# What Argilla and Label Studio keep beside the content of a record or a task.
_ARGILLA = frozenset(("fields", "responses", "suggestions", "vectors", "external_id", "status", "_server_id"))
_LABEL_STUDIO = frozenset(
    (
        *("data", "annotations", "predictions", "drafts", "file_upload", "project", "inner_id", "total_annotations"),
        *("cancelled_annotations", "total_predictions", "comment_count", "unresolved_comment_count"),
        *("last_comment_updated_at", "updated_by", "comment_authors", "annotation_id"),
    )
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its responses; none if they are still to be sampled. ``aspect`` is "" if the row names none."""

    prompt: Turns
    responses: tuple[str, ...] = ()
    aspect: str = ""


@dataclass(frozen=True, slots=True)
class QuestionReading:
    """How the rows of a file are read: by what they judge, or as rows without a judgement if ``judged`` is None."""

    judged: Reading | None
    choices: Choices

    def questions(self, row: Json) -> list[Question]:
        """Return what a row asks, each question once. Raises RowError."""
        if self.judged is None:
            return [question_of(row, self.choices)]
        return [*dict.fromkeys(map(_asked, self.judged.judgements(row)))]


def recognise_questions(name: str, lines: Iterable[Line], choices: Choices) -> QuestionReading:
    """Look at all rows, and return how they are read. Raises UnclearFile if what they judge is not clear."""
    return QuestionReading(recognise_judged(name, lines, choices), choices)


def question_of(row: Json, choices: Choices) -> Question:
    """Return what a row without a judgement asks. Raises RowError."""
    content = content_of(row, choices, ())
    for inside, beside in (("fields", _ARGILLA), ("data", _LABEL_STUDIO)):
        if isinstance(inner := content.get(inside), dict):
            _check_known(content, beside, choices)
            content = {key: value for key, value in inner.items() if value is not None}
            break
    prompts = [key for key in _PROMPTS if key in content]
    if len(prompts) != 1:
        named = " and ".join(prompts) or "none"
        raise RowError(f"holds no question: it needs one of {', '.join(_PROMPTS)}, and has {named}")
    listed = [key for key in _LISTS if key in content]
    single = sorted((key for key in content if _ONE.fullmatch(key)), key=_natural)
    _check_known(content, frozenset((*prompts, *listed, *single, "system", "tools", "aspect")), choices)
    if len(listed) + bool(single) > 1:
        raise RowError(f"has responses in {' and in '.join([*listed, *single[:1]])}: leave one out")
    prompt, last = _prompt(content, prompts[0])
    texts = [*last, *_responses(content, listed, single, prompt)]
    aspect = content.get("aspect", "")
    if not isinstance(aspect, str):
        raise RowError(f"aspect: is {kind_of(aspect)}, not text")
    return _checked(Question(with_system(content.get("system"), prompt), tuple(texts), aspect))


def _prompt(content: Mapping[str, Json], key: str) -> tuple[Turns, list[str]]:
    """Return the turns before the response, and the response if the conversation ends with it."""
    value = content[key]
    if key == "messages" and isinstance(value, list):
        said = messages_of(key, value)
        if said[-1].role == "assistant":
            if said[-1].tool_calls or len(said) < 2:
                raise RowError("messages: its last turn is no answer to a turn before it")
            return (*tools_in(content), *said[:-1]), [said[-1].content]
    return turns_of(key, value, content.get("tools")), []


def _responses(
    content: Mapping[str, Json], listed: Iterable[str], single: Iterable[str], prompt: Turns
) -> Iterator[str]:
    for key in listed:
        values = content[key]
        if not isinstance(values, list) or not values:
            raise RowError(f"{key}: is not a list of texts")
        for i, value in enumerate(values):
            yield _response(f"{key}[{i}]", value, prompt)
    for key in single:
        yield _response(key, content[key], prompt)


def _response(field: str, value: Json, prompt: Turns) -> str:
    if isinstance(value, dict):  # one message, or an object around the text
        value = value.get("content", value.get("text"))
    return completion_of(field, value, prompt) if isinstance(value, list) else text_of(field, value)


def _asked(judgement: Judgement) -> Question:
    return _checked(Question(judgement.prompt, judgement.responses, judgement.aspect))


def _checked(question: Question) -> Question:
    texts = question.responses
    if len(texts) > MOST_RESPONSES:
        raise RowError(f"has {len(texts)} responses, and a labeller judges at most {MOST_RESPONSES}")
    if len(set(texts)) < len(texts):
        raise RowError("two of its responses are the same")
    return question


def _check_known(content: Mapping[str, Json], known: frozenset[str], choices: Choices) -> None:
    if "*" in choices.ignored:
        return
    unknown = [key for key in content if key not in {*known, *COMMON, *HARMLESS, *choices.ignored}]
    if unknown:
        keys = ",".join(unknown)
        raise RowError(f"{unknown[0]}: is not known, and may change what is asked: say --ignore {keys} if it does not")


def _natural(key: str) -> tuple[str, int, str]:
    digits = re.search(r"\d+$", key)
    return key.rstrip("0123456789"), int(digits[0]) if digits else 0, key
