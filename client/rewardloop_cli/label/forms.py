"""Writes answers as rows that trainers read: TRL's preferences, KTO's labels, rankings, and everything as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from google.protobuf.json_format import MessageToDict

from rewardloop.formats.messages import turns
from rewardloop.v1 import common_pb2
from rewardloop_client import GivenAnswer
from rewardloop_data.written_rows import asked, spoken

Rows = Iterator[dict[str, Any]]


def preferences(answer: GivenAnswer) -> Rows:
    """Yield a row {prompt, chosen, rejected} for each pair of which the answer prefers one. An edit is preferred."""
    is_text = answer.prompt.WhichOneof("content") == "text"
    for chosen, rejected in pairs(answer):
        yield {
            **prompt_fields(answer.prompt),
            "chosen": chosen if is_text else spoken(chosen),
            "rejected": rejected if is_text else spoken(rejected),
            **about(answer),
        }


def labels(answer: GivenAnswer) -> Rows:
    """Yield rows {prompt, completion, label}: true for what the answer prefers most, false for what it likes least.

    A grade is true above the middle of what the labeller gave, and false below; without a difference it says nothing.
    """
    is_text = answer.prompt.WhichOneof("content") == "text"
    for text, label in _labelled(answer):
        said = text if is_text else spoken(text)
        yield {**prompt_fields(answer.prompt), "completion": said, "label": label, **about(answer)}


def rankings(answer: GivenAnswer) -> Rows:
    """Yield a row {prompt, responses, order} for an answer that orders all candidates. Indices count from 0."""
    order = order_of(answer)
    if order is not None:
        row = {"responses": list(answer.candidates), "order": order}
        yield {**prompt_fields(answer.prompt), **row, **about(answer)}


def everything(answer: GivenAnswer) -> Rows:
    """Yield all that is known of an answer or a skip."""
    yield {
        "lease_id": answer.lease_id,
        "task_id": answer.task_id,
        **prompt_fields(answer.prompt),
        "candidates": [
            {"text": text, "version": version} for text, version in zip(answer.candidates, answer.versions, strict=True)
        ],
        "display_order": list(answer.display_order),
        "verdict": MessageToDict(
            answer.verdict, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        ),
        **about(answer),
        "caller": answer.caller,
        "source": answer.source,
        "answer_time": answer.answer_time.isoformat(),
        "seconds": answer.seconds,
        "comment": answer.comment,
        "tags": dict(answer.tags),
        "is_repeat": answer.is_repeat,
        "probability": answer.draw.probability,
        "is_uniform": answer.draw.is_uniform,
        "information": answer.draw.information,
        "generation_id": answer.generation_id,
    }


FORMS: Mapping[str, Callable[[GivenAnswer], Rows]] = {
    "trl": preferences,
    "kto": labels,
    "rankings": rankings,
    "answers": everything,
}


def pairs(answer: GivenAnswer) -> Iterator[tuple[str, str]]:
    """Yield the better and the worse text of each pair of which the answer prefers one."""
    verdict, texts = answer.verdict, answer.candidates
    match verdict.WhichOneof("verdict"):
        case "choice":
            yield texts[verdict.choice.chosen], texts[verdict.choice.rejected]
        case "ranking":
            for better, worse in combinations(verdict.ranking.order, 2):
                yield texts[better], texts[worse]
        case "ratings":
            by_grade = sorted(verdict.ratings.ratings, key=lambda rating: -rating.value)
            for one, other in combinations(by_grade, 2):
                if one.value > other.value:
                    yield texts[one.response], texts[other.response]
        case "edit":
            yield verdict.edit.edited_text, texts[verdict.edit.response]


def order_of(answer: GivenAnswer) -> list[int] | None:
    """Return the indices of all candidates, best first, or None if the answer does not order all of them."""
    verdict = answer.verdict
    match verdict.WhichOneof("verdict"):
        case "choice":
            return [verdict.choice.chosen, verdict.choice.rejected]
        case "ranking":
            return list(verdict.ranking.order)
        case "ratings":
            grades = {rating.response: rating.value for rating in verdict.ratings.ratings}
            if 1 < len(answer.candidates) == len(grades) == len(set(grades.values())):
                return sorted(grades, key=lambda i: -grades[i])
    return None


def prompt_fields(prompt: common_pb2.Prompt) -> dict[str, Any]:
    """Return the prompt of a row: a text, or messages, with the tools if there are any."""
    if prompt.WhichOneof("content") == "text" and not prompt.tools_json:
        return {"prompt": prompt.text}
    return asked(turns(prompt))


def about(answer: GivenAnswer) -> dict[str, Any]:
    """Return what a row says of its judgement, in keys that readers of preference files know."""
    said: dict[str, Any] = {"annotator": answer.labeller, "judgement_id": answer.lease_id}
    return {**said, "aspect": answer.aspect} if answer.aspect else said


def _labelled(answer: GivenAnswer) -> Iterator[tuple[str, bool]]:
    verdict, texts = answer.verdict, answer.candidates
    match verdict.WhichOneof("verdict"):
        case "edit":
            yield verdict.edit.edited_text, True
            yield texts[verdict.edit.response], False
        case "ratings":
            yield from _by_grade(texts, {each.response: each.value for each in verdict.ratings.ratings})
        case "choice" | "ranking":
            order = order_of(answer) or []
            yield texts[order[0]], True
            yield texts[order[-1]], False


def _by_grade(texts: Sequence[str], grades: Mapping[int, float]) -> Iterator[tuple[str, bool]]:
    low, high = min(grades.values()), max(grades.values())
    for index, grade in grades.items():
        if grade != (low + high) / 2:
            yield texts[index], grade > (low + high) / 2
