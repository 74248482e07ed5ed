"""Writes answers as records of Argilla and as tasks of a Label Studio project, one for each task with all its answers.

The names of fields and questions are `prompt`, and for each candidate in the order in which it was added `response_1`,
`response_2`, ... (Argilla) or `answer1`, `answer2`, ... (Label Studio).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rewardloop_cli.label.forms import prompt_fields
from rewardloop_client import GivenAnswer

# Argilla knows users by UUIDs, which are made of caller and labeller.
_USERS = uuid.UUID("6d1f0f0e-7a55-5a5c-9a86-2d4a0c1b7b11")


def by_task(answers: Iterable[GivenAnswer]) -> list[list[GivenAnswer]]:
    """Return the answers of each task, in the order of the first answers."""
    tasks: dict[str, list[GivenAnswer]] = {}
    for answer in answers:
        tasks.setdefault(answer.task_id, []).append(answer)
    return list(tasks.values())


def argilla_record(answers: list[GivenAnswer]) -> dict[str, Any]:
    """Return the record of a task with all its answers, as ``Dataset.records.to_json`` writes records."""
    first = answers[0]
    responses: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        for question, value in _argilla_values(answer):
            user = str(uuid.uuid5(_USERS, f"{answer.caller}/{answer.labeller}"))
            responses.setdefault(question, []).append({"value": value, "user_id": user})
    fields = {f"response_{i}": text for i, text in enumerate(first.candidates, start=1)}
    versions = {f"version_{i}": version for i, version in enumerate(first.versions, start=1) if version}
    return {
        "id": first.task_id,
        "fields": {"prompt": prompt_fields(first.prompt)["prompt"], **fields},
        "metadata": {**first.tags, **versions, **({"aspect": first.aspect} if first.aspect else {})},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


def _argilla_values(answer: GivenAnswer) -> Iterator[tuple[str, Any]]:
    """Yield questions and values: a label, a ranking as a list with the best first, a grade, or a text."""
    verdict = answer.verdict
    match verdict.WhichOneof("verdict"):
        case "choice":
            yield "preference", f"response_{verdict.choice.chosen + 1}"
        case "tie":
            yield "preference", "tie"
        case "ranking":
            yield "ranking", [f"response_{i + 1}" for i in verdict.ranking.order]
        case "ratings":
            for rating in verdict.ratings.ratings:
                value = int(rating.value) if rating.value.is_integer() else rating.value
                yield f"rating_{rating.response + 1}", value
        case "edit":
            yield f"edit_{verdict.edit.response + 1}", verdict.edit.edited_text


def label_studio_task(answers: list[GivenAnswer]) -> dict[str, Any]:
    """Return the task with all its answers, as Label Studio exports tasks in JSON."""
    first = answers[0]
    data = {f"answer{i}": text for i, text in enumerate(first.candidates, start=1)}
    return {
        "data": {"prompt": prompt_fields(first.prompt)["prompt"], **data},
        "meta": {"task_id": first.task_id, **({"aspect": first.aspect} if first.aspect else {}), **first.tags},
        "annotations": [
            {
                "completed_by": {"email": answer.labeller},
                "was_cancelled": answer.verdict.HasField("skip"),
                "lead_time": answer.seconds,
                "created_at": answer.answer_time.isoformat(),
                "result": list(_label_studio_results(answer)),
            }
            for answer in answers
        ],
    }


def _label_studio_results(answer: GivenAnswer) -> Iterator[dict[str, Any]]:
    verdict = answer.verdict
    both = "answer1,answer2"
    match verdict.WhichOneof("verdict"):
        case "choice":
            selected = "left" if verdict.choice.chosen == 0 else "right"
            yield _result("comparison", both, "pairwise", {"selected": selected})
        case "tie":
            yield _result("tie", both, "choices", {"choices": ["tie"]})
        case "ranking":
            order = [f"answer{i + 1}" for i in verdict.ranking.order]
            yield _result("ranking", "answers", "ranker", {"ranker": {"answers": order}})
        case "ratings":
            for rating in verdict.ratings.ratings:
                yield _result("rating", f"answer{rating.response + 1}", "rating", {"rating": rating.value})
        case "edit":
            to = f"answer{verdict.edit.response + 1}"
            yield _result("edit", to, "textarea", {"text": [verdict.edit.edited_text]})


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


TOOLS: Mapping[str, Callable[[list[GivenAnswer]], dict[str, Any]]] = {
    "argilla": argilla_record,
    "label-studio": label_studio_task,
}
