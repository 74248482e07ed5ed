"""Adds tasks: validate -> fill in from the generation -> add once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rewardloop.formats.labelling.tasks import overlap_of, task_id, task_problems, texts_of
from rewardloop.formats.mixing.names import REWARD
from rewardloop.v1 import labelling_pb2, policy_pb2, reward_pb2
from rewardloop_server.calls.errors import InvalidRequest, RewardloopError, UnknownGeneration, Violation
from rewardloop_server.calls.validate import Limits, validate_score, within
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.labelling.queue import StoredTask, TaskQueue


class Supply:
    """Checks tasks and adds them.

    Args:
        queue: Where they go.
        generations: The log of the generations that tasks may name.
        limits: Bounds of texts.
        aspects: The reward models that learn from answers.
    """

    def __init__(
        self,
        queue: TaskQueue,
        generations: GenerationLog,
        limits: Limits,
        aspects: Collection[str] = (REWARD,),
    ) -> None:
        self._queue = queue
        self._generations = generations
        self._limits = limits
        self._aspects = aspects

    async def add(self, request: labelling_pb2.AddTasksRequest, caller: str) -> list[labelling_pb2.AddTasksItem]:
        """Add the tasks of a request whose own fields were checked, and return an item for each.

        Raises RedisUnavailable or StoreFull: some may have been added, and adding all of them again adds the rest.
        """
        named = {task.generation_id for task in request.tasks} - {""}
        known = await self._generations.get(named, caller) if named else {}
        checked = [self._checked(task, known.get(task.generation_id)) for task in request.tasks]
        good = [
            (task, overlap_of(task.new, task.task_id, request.shared_share, request.shared_overlap))
            for task in checked
            if isinstance(task, StoredTask)
        ]
        added: Sequence[bool] = ()
        if good:
            await self._queue.make_project(request.project)
            added = await self._queue.add(request.project, request.import_id, good)
        places = iter(added)
        items = []
        for i, task in enumerate(checked):
            if isinstance(task, StoredTask):
                result = labelling_pb2.AddedTask(task_id=task.task_id, duplicate=next(places))
                items.append(labelling_pb2.AddTasksItem(result=result))
            else:
                error = within(task, f"tasks[{i}]") if isinstance(task, InvalidRequest) else task
                items.append(labelling_pb2.AddTasksItem(error=error.to_status()))
        return items

    def _checked(
        self, given: labelling_pb2.NewTask, generation: policy_pb2.Generation | None
    ) -> StoredTask | RewardloopError:
        """Return the task as it is kept, or what is wrong with it."""
        task = labelling_pb2.NewTask()
        task.CopyFrom(given)
        if task.generation_id:
            if task.HasField("prompt") or task.candidates:
                return InvalidRequest([Violation("generation_id", "excludes prompt and candidates")])
            if generation is None:
                return UnknownGeneration("no generation is logged under this id, or it has expired")
            _fill_in(task, generation)
        violations = [Violation(field, problem) for field, problem in task_problems(task)]
        if task.aspect and task.aspect not in self._aspects:
            violations.append(Violation("aspect", f"not one of {', '.join(self._aspects)}"))
        if (size := task.ByteSize()) > self._limits.max_event_bytes:
            violations.append(Violation("", f"the task has {size} bytes, more than {self._limits.max_event_bytes}"))
        try:
            # What is asked about can be scored, and what can be scored can be a signal.
            validate_score(reward_pb2.ScoreRequest(prompt=task.prompt, responses=texts_of(task)), self._limits)
        except InvalidRequest as error:
            violations += error.violations
        return InvalidRequest(violations) if violations else StoredTask(task_id(task), task, generation)


def _fill_in(task: labelling_pb2.NewTask, generation: policy_pb2.Generation) -> None:
    task.prompt.CopyFrom(generation.prompt)
    for candidate in generation.candidates:
        version = candidate.policy_version if candidate.HasField("policy_version") else generation.policy_version
        task.candidates.add(text=candidate.text, version=version.version)
