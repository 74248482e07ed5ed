"""Turns Python values into messages of the LabellingService and back, without I/O."""

from __future__ import annotations

from datetime import UTC
from typing import cast

from rewardloop.v1 import feedback_pb2, labelling_pb2
from rewardloop_client._convert import building, invalid, prompt_pb, text_field
from rewardloop_client._errors import InvalidReply, from_status
from rewardloop_client._types import SourceName
from rewardloop_client.labelling.types import (
    AddedTask,
    AddOutcome,
    Agreement,
    Answered,
    AnswerKindName,
    AnswerPage,
    Draw,
    GivenAnswer,
    LabellerProgress,
    LabellingProgress,
    LabellingTask,
    NewTask,
    NoTaskName,
    Offer,
    Undone,
)

_KINDS: dict[AnswerKindName, labelling_pb2.AnswerKind] = {
    "choice": labelling_pb2.ANSWER_KIND_CHOICE,
    "ranking": labelling_pb2.ANSWER_KIND_RANKING,
    "rating": labelling_pb2.ANSWER_KIND_RATING,
    "edit": labelling_pb2.ANSWER_KIND_EDIT,
}
_KIND_NAMES = {value: name for name, value in _KINDS.items()}
_NO_TASKS: dict[int, NoTaskName] = {
    labelling_pb2.NO_TASK_ALL_DONE: "all_done",
    labelling_pb2.NO_TASK_ALL_TAKEN: "all_taken",
}


def new_task(task: NewTask) -> labelling_pb2.NewTask:
    """Raises InvalidRequest for a value that a message cannot hold."""
    unknown = [kind for kind in task.kinds if kind not in _KINDS]
    if isinstance(task.kinds, str) or unknown:
        raise invalid("kinds", f"is {task.kinds!r}, not a list of {', '.join(_KINDS)}")
    if task.versions and len(task.versions) != len(task.candidates):
        raise invalid("versions", f"has {len(task.versions)} items for {len(task.candidates)} candidates")
    versions = task.versions or [""] * len(task.candidates)
    with building("task"):
        made = labelling_pb2.NewTask(
            generation_id=text_field("generation_id", task.generation_id),
            candidates=[
                labelling_pb2.TaskCandidate(text=text_field(f"candidates[{i}]", text), version=version)
                for i, (text, version) in enumerate(zip(task.candidates, versions, strict=True))
            ],
            kinds=[_KINDS[kind] for kind in task.kinds],
            aspect=text_field("aspect", task.aspect),
            tags=task.tags,
            overlap=task.overlap,
        )
    if task.prompt is not None:
        made.prompt.CopyFrom(prompt_pb(task.prompt))
    if task.scale is not None:
        with building("scale"):
            minimum, maximum = task.scale
            made.rating_scale.CopyFrom(labelling_pb2.RatingScale(minimum=minimum, maximum=maximum))
    return made


def added(item: labelling_pb2.AddTasksItem) -> AddOutcome:
    outcome = item.WhichOneof("outcome")
    if outcome is None:
        return InvalidReply("the reply holds neither a result nor an error")
    if outcome == "error":
        return from_status(item.error)
    return AddedTask(item.result.task_id, item.result.duplicate)


def task(message: labelling_pb2.Task) -> LabellingTask:
    """Raises InvalidReply for a task without a lease or without candidates."""
    if not message.lease_id or not message.candidates:
        raise InvalidReply("the reply has a task without a lease or without candidates")
    scale = message.rating_scale
    return LabellingTask(
        lease_id=message.lease_id,
        task_id=message.task_id,
        project=message.project,
        prompt=message.prompt,
        candidates=tuple(message.candidates),
        kinds=tuple(_KIND_NAMES[kind] for kind in message.kinds if kind in _KIND_NAMES),
        scale=(scale.minimum, scale.maximum) if message.HasField("rating_scale") else None,
        aspect=message.aspect,
        tags=dict(message.tags),
        expire_time=message.expire_time.ToDatetime(tzinfo=UTC),
        guideline_version=message.guideline_version,
    )


def offer(response: labelling_pb2.NextTaskResponse) -> Offer:
    if response.HasField("task"):
        return Offer(task(response.task), None, response.answered, response.left)
    why = _NO_TASKS.get(response.no_task, "unspecified")
    return Offer(None, why, response.answered, response.left, response.own_left, response.taken)


def answered(response: labelling_pb2.AnswerResponse) -> Answered:
    return Answered(response.duplicate, response.answered)


def undone(response: labelling_pb2.UndoResponse) -> Undone:
    return Undone(task(response.task), response.verdict, response.comment, response.answered)


def progress(response: labelling_pb2.GetProgressResponse) -> list[LabellingProgress]:
    return [_progress(each) for each in response.projects]


def page(response: labelling_pb2.ListAnswersResponse) -> AnswerPage:
    return AnswerPage(tuple(_given(each) for each in response.answers), response.next_page_token)


def _progress(message: labelling_pb2.Progress) -> LabellingProgress:
    return LabellingProgress(
        project=message.project,
        tasks=message.tasks,
        done=message.done,
        open=message.open,
        given_up=message.given_up,
        leases=message.leases,
        answers=message.answers,
        answers_by_kind=dict(message.answers_by_kind),
        skips=dict(message.skips),
        unscored=message.unscored,
        agreement=_agreement(message.agreement),
        self_agreement=_agreement(message.self_agreement),
        labellers=tuple(_labeller(each) for each in message.labellers),
        guideline_version=message.guideline_version,
    )


def _agreement(message: labelling_pb2.Agreement) -> Agreement | None:
    return Agreement(message.compared, message.agreed) if message.compared else None


def _labeller(message: labelling_pb2.LabellerProgress) -> LabellerProgress:
    return LabellerProgress(
        labeller=message.labeller,
        caller=message.caller,
        answers=message.answers,
        skips=message.skips,
        repeats=message.repeats,
        seconds=message.seconds,
        agreement=_agreement(message.agreement),
        last_time=message.last_time.ToDatetime(tzinfo=UTC) if message.HasField("last_time") else None,
        left=message.left,
    )


def _given(message: labelling_pb2.GivenAnswer) -> GivenAnswer:
    draw = message.draw
    source = feedback_pb2.Source.Name(message.source or feedback_pb2.SOURCE_HUMAN).removeprefix("SOURCE_").lower()
    return GivenAnswer(
        lease_id=message.lease_id,
        task_id=message.task_id,
        prompt=message.prompt,
        candidates=tuple(each.text for each in message.candidates),
        versions=tuple(each.version for each in message.candidates),
        display_order=tuple(message.display_order),
        verdict=message.verdict,
        labeller=message.labeller,
        caller=message.caller,
        source=cast(SourceName, source),
        answer_time=message.answer_time.ToDatetime(tzinfo=UTC),
        seconds=message.seconds if message.HasField("seconds") else None,
        guideline_version=message.guideline_version,
        comment=message.comment,
        aspect=message.aspect,
        tags=dict(message.tags),
        is_repeat=message.is_repeat,
        draw=Draw(draw.probability, draw.is_uniform, draw.information if draw.HasField("information") else None),
        generation_id=message.generation_id,
    )
