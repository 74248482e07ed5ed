"""Every method of the LabellingService as a `Call` or as steps, which both clients carry out in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rewardloop.v1 import labelling_pb2
from rewardloop_client import _calls as calls
from rewardloop_client._convert import building, check_items, invalid, source_pb, text_field
from rewardloop_client._errors import InvalidRequest
from rewardloop_client._retry import Call, RetryPolicy, Steps, steps_of
from rewardloop_client._types import SourceName
from rewardloop_client.labelling import messages
from rewardloop_client.labelling.types import (
    AddOutcome,
    Answered,
    AnswerPage,
    Guidelines,
    LabellingProgress,
    NewTask,
    Offer,
    RetractedTasks,
    Undone,
)


def add_tasks(
    project: str,
    tasks: Iterable[NewTask],
    import_id: str,
    shared: tuple[float, int],
    policy: RetryPolicy,
    timeout_s: float | None,
) -> Steps[list[AddOutcome]]:
    """Return one outcome for each task, in order. Tasks that one call cannot carry go in several.

    A task that no message can hold fails alone and is not sent. ``shared`` is the share of tasks with more overlap, and
    that overlap.

    Raises:
        RewardloopError: The first call failed. If a later one fails, that is the outcome of the tasks that are left.
    """
    outcomes: list[AddOutcome | None] = []
    made: list[labelling_pb2.NewTask] = []
    for task in tasks:
        try:
            made.append(messages.new_task(task))
            outcomes.append(None)
        except InvalidRequest as error:
            outcomes.append(error)
    answers = iter((yield from add_messages(project, made, import_id, shared, policy, timeout_s)))
    return [next(answers) if outcome is None else outcome for outcome in outcomes]


def add_messages(
    project: str,
    tasks: Sequence[labelling_pb2.NewTask],
    import_id: str,
    shared: tuple[float, int],
    policy: RetryPolicy,
    timeout_s: float | None,
) -> Steps[list[AddOutcome]]:
    """Return one outcome for each task, as `add_tasks` does."""
    with building("shared"):
        request = labelling_pb2.AddTasksRequest(
            project=text_field("project", project),
            import_id=text_field("import_id", import_id),
            shared_share=shared[0],
            shared_overlap=shared[1],
        )

    def part(sent: Sequence[labelling_pb2.NewTask], seconds: float | None) -> Steps[list[AddOutcome]]:
        return steps_of(_add_part(request, sent), policy, seconds)

    return calls.in_parts(tasks, timeout_s, part)


def _add_part(request: labelling_pb2.AddTasksRequest, sent: Sequence[labelling_pb2.NewTask]) -> Call[list[AddOutcome]]:
    def read(response: labelling_pb2.AddTasksResponse) -> list[AddOutcome]:
        check_items(len(response.items), len(sent))
        return [messages.added(item) for item in response.items]

    whole = labelling_pb2.AddTasksRequest(tasks=sent)
    whole.MergeFrom(request)
    return calls.one_call(calls.ADD_TASKS, whole, labelling_pb2.AddTasksResponse, read)


def retract_tasks(project: str, import_id: str, answers: bool) -> Call[RetractedTasks]:
    request = labelling_pb2.RetractTasksRequest(
        project=text_field("project", project), import_id=text_field("import_id", import_id), answers=answers
    )

    def read(response: labelling_pb2.RetractTasksResponse) -> RetractedTasks:
        return RetractedTasks(response.tasks, response.answers)

    return calls.one_call(calls.RETRACT_TASKS, request, labelling_pb2.RetractTasksResponse, read)


def next_task(project: str, labeller: str) -> Call[Offer]:
    """Safe to repeat: a labeller who has a task gets the same task again."""
    request = labelling_pb2.NextTaskRequest(
        project=text_field("project", project), labeller=text_field("labeller", labeller)
    )
    return calls.one_call(calls.NEXT_TASK, request, labelling_pb2.NextTaskResponse, messages.offer)


def answer(
    project: str,
    lease_id: str,
    verdict: labelling_pb2.Verdict,
    labeller: str,
    *,
    seconds: float | None,
    guideline_version: str,
    comment: str,
    source: SourceName,
) -> Call[Answered]:
    """Safe to repeat: the server records a lease's answer once."""
    if not isinstance(verdict, labelling_pb2.Verdict):
        raise invalid("verdict", f"is {type(verdict).__name__}, not a Verdict")
    with building("seconds"):
        request = labelling_pb2.AnswerRequest(
            project=text_field("project", project),
            labeller=text_field("labeller", labeller),
            lease_id=text_field("lease_id", lease_id),
            verdict=verdict,
            seconds=seconds,
            guideline_version=text_field("guideline_version", guideline_version),
            comment=text_field("comment", comment),
            source=source_pb(source),
        )
    return calls.one_call(calls.ANSWER, request, labelling_pb2.AnswerResponse, messages.answered)


def undo(project: str, labeller: str) -> Call[Undone]:
    """Not safe to repeat: a second undo takes back one answer more."""
    request = labelling_pb2.UndoRequest(
        project=text_field("project", project), labeller=text_field("labeller", labeller)
    )
    return calls.one_call(calls.UNDO, request, labelling_pb2.UndoResponse, messages.undone)


def progress(project: str, labeller: str) -> Call[list[LabellingProgress]]:
    request = labelling_pb2.GetProgressRequest(
        project=text_field("project", project), labeller=text_field("labeller", labeller)
    )
    return calls.one_call(calls.GET_PROGRESS, request, labelling_pb2.GetProgressResponse, messages.progress)


def list_answers(project: str, page_size: int, page_token: str) -> Call[AnswerPage]:
    with building("page_size"):
        request = labelling_pb2.ListAnswersRequest(
            project=text_field("project", project),
            page_size=page_size,
            page_token=text_field("page_token", page_token),
        )
    return calls.one_call(calls.LIST_ANSWERS, request, labelling_pb2.ListAnswersResponse, messages.page)


def set_guidelines(project: str, text: str) -> Call[str]:
    request = labelling_pb2.SetGuidelinesRequest(project=text_field("project", project), text=text_field("text", text))
    return calls.one_call(
        calls.SET_GUIDELINES, request, labelling_pb2.SetGuidelinesResponse, lambda response: str(response.version)
    )


def guidelines(project: str, version: str) -> Call[Guidelines]:
    request = labelling_pb2.GetGuidelinesRequest(
        project=text_field("project", project), version=text_field("version", version)
    )

    def read(response: labelling_pb2.GetGuidelinesResponse) -> Guidelines:
        return Guidelines(response.text, response.version)

    return calls.one_call(calls.GET_GUIDELINES, request, labelling_pb2.GetGuidelinesResponse, read)
