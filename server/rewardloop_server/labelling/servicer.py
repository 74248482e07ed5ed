"""The LabellingService: validate -> add, hand out, record, take back, or look."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from google.protobuf import timestamp_pb2

from rewardloop.formats.labelling.tasks import (
    MOST_GUIDELINE_BYTES,
    guidelines_version,
    import_problems,
    project_problem,
    shown_task,
)
from rewardloop.formats.labelling.verdicts import answer_problems, in_shown_order
from rewardloop.formats.signals import MOST_IMPORT_ID_CHARACTERS
from rewardloop.v1 import labelling_pb2, labelling_pb2_grpc
from rewardloop_server.calls.errors import (
    InvalidRequest,
    RedisUnavailable,
    RewardloopError,
    StoreFull,
    UnknownGuidelines,
    Violation,
)
from rewardloop_server.labelling.labeller import caller_of, labeller_of, sees_everybody
from rewardloop_server.labelling.progress import page_of, progress_of
from rewardloop_server.labelling.queue import Offered, TaskQueue
from rewardloop_server.labelling.record import Recorder
from rewardloop_server.labelling.supply import Supply
from rewardloop_server.observe.labelling_metrics import LabellingMetrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class LabellingServicer(labelling_pb2_grpc.LabellingServiceServicer):
    """Hands out tasks and records the answers.

    Args:
        queue: The tasks, leases and answers.
        supply: Checks the tasks that are added.
        recorder: Makes signals of answers.
        metrics: Where answers are counted.
        max_tasks: Most tasks of one AddTasks.
    """

    def __init__(
        self, queue: TaskQueue, supply: Supply, recorder: Recorder, metrics: LabellingMetrics, *, max_tasks: int
    ) -> None:
        self._queue = queue
        self._supply = supply
        self._recorder = recorder
        self._metrics = metrics
        self._max_tasks = max_tasks

    async def AddTasks(
        self, request: labelling_pb2.AddTasksRequest, context: Context
    ) -> labelling_pb2.AddTasksResponse:
        violations = [Violation(field, problem) for field, problem in import_problems(request)]
        if not 1 <= len(request.tasks) <= self._max_tasks:
            violations.append(Violation("tasks", f"1 to {self._max_tasks} tasks, not {len(request.tasks)}"))
        if violations:
            raise InvalidRequest(violations)
        return labelling_pb2.AddTasksResponse(items=await self._supply.add(request, caller_of()))

    async def RetractTasks(
        self, request: labelling_pb2.RetractTasksRequest, context: Context
    ) -> labelling_pb2.RetractTasksResponse:
        if not 1 <= len(request.import_id) <= MOST_IMPORT_ID_CHARACTERS:
            raise InvalidRequest([Violation("import_id", f"not 1 to {MOST_IMPORT_ID_CHARACTERS} characters")])
        await self._check(request.project)
        tasks = answers = 0
        is_more = True
        while is_more:
            gone, leases, is_more = await self._queue.retract(request.project, request.import_id, request.answers)
            tasks += gone
            answers += await self._recorder.take_back_all(request.project, leases)
        return labelling_pb2.RetractTasksResponse(tasks=tasks, answers=answers)

    async def NextTask(
        self, request: labelling_pb2.NextTaskRequest, context: Context
    ) -> labelling_pb2.NextTaskResponse:
        labeller = labeller_of(request.labeller)
        await self._check(request.project)
        given = await self._queue.next(request.project, labeller)
        reply = labelling_pb2.NextTaskResponse(
            answered=given.answered, left=given.left, own_left=given.own_left, taken=given.taken
        )
        if given.offered is not None:
            reply.task.CopyFrom(_shown(request.project, given.offered))
        else:
            reply.no_task = labelling_pb2.NO_TASK_ALL_DONE if given.all_done else labelling_pb2.NO_TASK_ALL_TAKEN
        return reply

    async def Answer(self, request: labelling_pb2.AnswerRequest, context: Context) -> labelling_pb2.AnswerResponse:
        labeller = labeller_of(request.labeller)
        if problems := [Violation(field, problem) for field, problem in answer_problems(request)]:
            raise InvalidRequest(problems)
        await self._check(request.project)
        try:
            is_duplicate = await self._recorder.answer(request, labeller)
        except RewardloopError as error:
            is_unknown = isinstance(error, RedisUnavailable | StoreFull)
            self._metrics.answered(request.verdict, "failed" if is_unknown else "refused")
            raise
        if is_duplicate:
            self._metrics.answered(request.verdict, "duplicate")
        person = await self._queue.person(request.project, labeller.key)
        return labelling_pb2.AnswerResponse(duplicate=is_duplicate, answered=int(person.get("answers", 0)))

    async def Undo(self, request: labelling_pb2.UndoRequest, context: Context) -> labelling_pb2.UndoResponse:
        labeller = labeller_of(request.labeller)
        await self._check(request.project)
        offered, given = await self._recorder.undo(request.project, labeller)
        person = await self._queue.person(request.project, labeller.key)
        return labelling_pb2.UndoResponse(
            task=_shown(request.project, offered),
            verdict=in_shown_order(given.verdict, offered.order),
            comment=given.comment,
            answered=int(person.get("answers", 0)),
        )

    async def GetProgress(
        self, request: labelling_pb2.GetProgressRequest, context: Context
    ) -> labelling_pb2.GetProgressResponse:
        only = None if sees_everybody() else labeller_of(request.labeller)
        if request.project:
            await self._check(request.project)
        projects = [request.project] if request.project else await self._queue.projects()
        return labelling_pb2.GetProgressResponse(
            projects=[await progress_of(self._queue, project, only) for project in projects]
        )

    async def ListAnswers(
        self, request: labelling_pb2.ListAnswersRequest, context: Context
    ) -> labelling_pb2.ListAnswersResponse:
        await self._check(request.project)
        return await page_of(self._queue, request)

    async def SetGuidelines(
        self, request: labelling_pb2.SetGuidelinesRequest, context: Context
    ) -> labelling_pb2.SetGuidelinesResponse:
        _check_name(request.project)
        if len(request.text.encode()) > MOST_GUIDELINE_BYTES:
            raise InvalidRequest([Violation("text", f"more than {MOST_GUIDELINE_BYTES} bytes")])
        version = guidelines_version(request.text)
        await self._queue.make_project(request.project)
        await self._queue.set_guidelines(request.project, version, request.text)
        return labelling_pb2.SetGuidelinesResponse(version=version)

    async def GetGuidelines(
        self, request: labelling_pb2.GetGuidelinesRequest, context: Context
    ) -> labelling_pb2.GetGuidelinesResponse:
        await self._check(request.project)
        found = await self._queue.guidelines(request.project, request.version)
        if found is None:
            raise UnknownGuidelines("this project has no such guidelines")
        return labelling_pb2.GetGuidelinesResponse(text=found[0], version=found[1])

    async def _check(self, project: str) -> None:
        """Raise InvalidRequest or UnknownProject unless there is the project."""
        _check_name(project)
        await self._queue.check_project(project)


def _check_name(project: str) -> None:
    if problem := project_problem(project):
        raise InvalidRequest([Violation("project", problem)])


def _shown(project: str, offered: Offered) -> labelling_pb2.Task:
    task = shown_task(offered.new, offered.task_id, project, offered.lease_id, offered.order)
    task.expire_time.CopyFrom(timestamp_pb2.Timestamp())
    task.expire_time.FromMilliseconds(offered.expires_ms)
    task.guideline_version = offered.guidelines
    return task
