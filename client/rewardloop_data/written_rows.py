"""Judgements as rows of files: in the shapes that this project documents, and in those that TRL reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rewardloop.formats.messages import Turn, message_of, tools_of
from rewardloop_data.judgements import Approved, Edited, Equal, Graded, Judgement, Ordered, Preferred

ShapeName: TypeAlias = Literal["rows", "trl-preference", "trl-kto", "rankings", "sft"]
Form: TypeAlias = Literal["conversational", "plain"]
Row: TypeAlias = dict[str, Any]


class NoPlace(ValueError):
    """Raised for a judgement that a shape has no row for. The message says why, in words that many may share."""


def row_of(judgement: Judgement) -> Row:
    """Return a judgement as a row of a documented shape, which leaves nothing open."""
    return {**asked(judgement.prompt), **_said(judgement), **about(judgement)}


def asked(prompt: Sequence[Turn]) -> Row:
    """Return the fields of a row that hold a prompt: its messages, and its tools if there are any."""
    tools, said = tools_of(prompt)
    return {"prompt": [message_of(turn) for turn in said], **({"tools": tools} if tools else {})}


def _said(judgement: Judgement) -> Row:
    texts = judgement.responses
    match said := judgement.said:
        case Preferred():
            pair = {"chosen": texts[said.chosen], "rejected": texts[said.rejected]}
            return pair if said.strength is None else {**pair, "strength": said.strength}
        case Equal():
            return {"response_a": texts[said.first], "response_b": texts[said.second], "winner": "tie"}
        case Ordered():
            return {"responses": list(texts), "order": list(said.order)}
        case Approved():
            return {"completion": texts[0], "label": said.up}
        case Graded():
            ends = {"minimum": said.minimum, "maximum": said.maximum}
            return {"completion": texts[0], "rating": said.value, **ends}
        case Edited():
            return {"response": texts[0], "edited_text": said.text}


def about(judgement: Judgement) -> dict[str, str]:
    """Return who judged, for which reward model, and the judgement's id, as keys that an import reads."""
    return dict(_about(judgement))


def _about(judgement: Judgement) -> Iterator[tuple[str, str]]:
    if judgement.annotator:
        yield "annotator", judgement.annotator
    if judgement.aspect:
        yield "aspect", judgement.aspect
    if judgement.copy:
        yield "judgement_id", f"{judgement.key}#{judgement.copy}"
    elif judgement.key:
        yield "judgement_id", judgement.key


def shaped(judgement: Judgement, shape: ShapeName, form: Form) -> Row:
    """Return a judgement as a row of a shape, without `about`. Raises NoPlace."""
    if shape == "rows":
        return {**asked(judgement.prompt), **_said(judgement)}
    made = _MADE[shape].get(type(judgement.said))
    if made is None:
        raise NoPlace(f"{shape} has no row for {_NAMES[type(judgement.said)]}")
    row = made(judgement)
    if form == "conversational" or shape == "rankings":
        return {**asked(judgement.prompt), **_spoken(row)}
    tools, said = tools_of(judgement.prompt)
    if tools or len(said) != 1 or said[0] != Turn("user", said[0].content):
        raise NoPlace("a plain prompt holds one question, and no system text, tools or earlier turns")
    return {"prompt": said[0].content, **row}


def spoken(text: str) -> list[dict[str, str]]:
    """Return a response as a list of one message."""
    return [{"role": "assistant", "content": text}]


def _spoken(row: Mapping[str, Any]) -> Row:
    """Return a row whose answers are lists of messages."""
    return {key: spoken(value) if isinstance(value, str) else value for key, value in row.items()}


def _preferred(judgement: Judgement) -> Row:
    said = judgement.said
    assert isinstance(said, Preferred)
    return {"chosen": judgement.responses[said.chosen], "rejected": judgement.responses[said.rejected]}


def _edited_pair(judgement: Judgement) -> Row:
    return {"chosen": _edited(judgement)["completion"], "rejected": judgement.responses[0]}


def _labelled(judgement: Judgement) -> Row:
    assert isinstance(judgement.said, Approved)
    return {"completion": judgement.responses[0], "label": judgement.said.up}


def _edited(judgement: Judgement) -> Row:
    assert isinstance(judgement.said, Edited)
    return {"completion": judgement.said.text}


_MADE: dict[ShapeName, dict[type, Callable[[Judgement], Row]]] = {
    "trl-preference": {Preferred: _preferred, Edited: _edited_pair},
    "trl-kto": {Approved: _labelled},
    "rankings": {Ordered: _said},
    "sft": {Edited: _edited},
}
_NAMES: dict[type, str] = {
    Preferred: "choices",
    Equal: "ties",
    Ordered: "rankings",
    Approved: "thumbs",
    Graded: "ratings",
    Edited: "edits",
}
