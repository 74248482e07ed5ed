"""The LabellingService in memory, by the rules of the contract, for `rewardloop_client.fake`.

Tasks are given in the order in which they were added, and no task is repeated.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from google.protobuf.message import Message

from rewardloop.formats.labelling import tasks as rules
from rewardloop.formats.labelling import verdicts
from rewardloop.v1 import feedback_pb2, labelling_pb2, policy_pb2
from rewardloop_client import _calls as calls
from rewardloop_client._convert import timestamp
from rewardloop_client._errors import (
    InvalidRequest,
    LeaseAnswered,
    NothingToUndo,
    RewardloopError,
    TaskRetracted,
    TaskTaken,
    UnknownGeneration,
    UnknownGuidelines,
    UnknownLease,
    UnknownProject,
    Violation,
    to_status,
)
from rewardloop_client._rules import prompt_violations

_LEASE_S = 600.0


@dataclass(slots=True)
class _Lease:
    """A task in a labeller's hands, and the answer if there is one."""

    lease_id: str
    task_id: str
    labeller: str
    order: list[int]
    probability: float
    expires: float
    said: labelling_pb2.AnswerRequest | None = None
    answer: labelling_pb2.GivenAnswer | None = None

    @property
    def is_skip(self) -> bool:
        return self.said is not None and self.said.verdict.HasField("skip")

    @property
    def takes_place(self) -> bool:
        """Whether nobody else may have this place of the task."""
        return not self.is_skip if self.said else self.expires > time.time()


@dataclass(slots=True)
class _Task:
    new: labelling_pb2.NewTask
    overlap: int
    imports: set[str]


@dataclass(slots=True)
class _Project:
    tasks: dict[str, _Task] = field(default_factory=dict)
    leases: dict[str, _Lease] = field(default_factory=dict)
    retracted: set[str] = field(default_factory=set)  # lease_ids
    guidelines: dict[str, str] = field(default_factory=dict)
    version: str = ""

    def of_task(self, task_id: str) -> list[_Lease]:
        return [lease for lease in self.leases.values() if lease.task_id == task_id]

    def of(self, labeller: str) -> list[_Lease]:
        return [lease for lease in self.leases.values() if lease.labeller == labeller]

    def has_place(self, task_id: str) -> bool:
        return sum(lease.takes_place for lease in self.of_task(task_id)) < self.tasks[task_id].overlap

    def open_for(self, labeller: str) -> list[str]:
        mine = {lease.task_id for lease in self.of(labeller)}
        return [task_id for task_id in self.tasks if task_id not in mine and self.has_place(task_id)]

    def held_by(self, labeller: str) -> list[_Lease]:
        """Return the labeller's leases without an answer whose place nobody else has taken, oldest first."""
        return [each for each in self.of(labeller) if each.said is None and self.is_free(each)]

    def is_free(self, lease: _Lease) -> bool:
        return lease.takes_place or self.has_place(lease.task_id)

    def unfinished(self) -> list[str]:
        """Return the tasks that have not all the answers that are wanted."""
        return [
            name
            for name, task in self.tasks.items()
            if sum(each.said is not None and each.takes_place for each in self.of_task(name)) < task.overlap
        ]

    def answered(self, labeller: str) -> int:
        return sum(lease.said is not None and not lease.is_skip for lease in self.of(labeller))


class FakeLabelling:
    """The state of all projects.

    Args:
        events: Where the signals of answers go.
        generations: The generations that tasks may name.

    Attributes:
        answers: Each method's path, and the function that answers it.
    """

    def __init__(
        self, events: list[feedback_pb2.FeedbackEvent], generations: Mapping[str, policy_pb2.Generation]
    ) -> None:
        self._events = events
        self._generations = generations
        self._projects: dict[str, _Project] = {}
        self._chance = Random(0)
        self.answers: dict[str, Callable[..., Message]] = {
            calls.ADD_TASKS: self._add,
            calls.RETRACT_TASKS: self._retract,
            calls.NEXT_TASK: self._next,
            calls.ANSWER: self._answer,
            calls.UNDO: self._undo,
            calls.GET_PROGRESS: self._progress,
            calls.LIST_ANSWERS: self._list,
            calls.SET_GUIDELINES: self._set_guidelines,
            calls.GET_GUIDELINES: self._guidelines,
        }

    def end_leases(self) -> None:
        """End all leases now, as if their time had passed."""
        for project in self._projects.values():
            for lease in project.leases.values():
                lease.expires = 0.0

    def _add(self, request: labelling_pb2.AddTasksRequest) -> labelling_pb2.AddTasksResponse:
        _refuse(rules.import_problems(request))
        items = []
        for task in request.tasks:
            try:
                items.append(labelling_pb2.AddTasksItem(result=self._add_one(request, task)))
            except RewardloopError as error:
                items.append(labelling_pb2.AddTasksItem(error=to_status(error)))
        return labelling_pb2.AddTasksResponse(items=items)

    def _add_one(self, request: labelling_pb2.AddTasksRequest, given: labelling_pb2.NewTask) -> labelling_pb2.AddedTask:
        task = labelling_pb2.NewTask()
        task.CopyFrom(given)
        if task.generation_id:
            if task.HasField("prompt") or task.candidates:
                _refuse([("generation_id", "excludes prompt and candidates")])
            generation = self._generations.get(task.generation_id)
            if generation is None:
                raise UnknownGeneration(f"generation {task.generation_id} is unknown")
            task.prompt.CopyFrom(generation.prompt)
            task.candidates.extend(
                labelling_pb2.TaskCandidate(text=each.text, version=generation.policy_version.version)
                for each in generation.candidates
            )
        _refuse((v.field, v.description) for v in prompt_violations(task.prompt))
        _refuse(rules.task_problems(task))
        task_id = rules.task_id(task)
        project = self._projects.setdefault(request.project, _Project())
        known = project.tasks.get(task_id)
        if known is not None:
            known.imports.add(request.import_id)
            return labelling_pb2.AddedTask(task_id=task_id, duplicate=True)
        overlap = rules.overlap_of(task, task_id, request.shared_share, request.shared_overlap)
        project.tasks[task_id] = _Task(task, overlap, {request.import_id})
        return labelling_pb2.AddedTask(task_id=task_id)

    def _retract(self, request: labelling_pb2.RetractTasksRequest) -> labelling_pb2.RetractTasksResponse:
        project = self._project(request.project)
        gone = [name for name, task in project.tasks.items() if request.import_id in task.imports]
        for name in gone:
            project.tasks[name].imports.remove(request.import_id)
        gone = [name for name in gone if not project.tasks[name].imports]
        answers = 0
        for lease in [lease for name in gone for lease in project.of_task(name)]:
            if lease.said is None or request.answers:
                project.retracted.add(lease.lease_id)
                del project.leases[lease.lease_id]
            if lease.said is not None and request.answers:
                answers += 1
                self._take_back(lease)
        for name in gone:
            if not project.of_task(name):
                del project.tasks[name]
            else:
                project.tasks[name].overlap = 0
        return labelling_pb2.RetractTasksResponse(tasks=len(gone), answers=answers)

    def _next(self, request: labelling_pb2.NextTaskRequest) -> labelling_pb2.NextTaskResponse:
        project, who = self._project(request.project), _labeller(request.labeller)
        held, ours = project.held_by(who), project.open_for(who)
        if not held and ours:
            order = list(range(len(project.tasks[ours[0]].new.candidates)))
            self._chance.shuffle(order)
            held.append(_Lease(uuid.uuid4().hex, ours.pop(0), who, order, 1.0, 0.0))
            project.leases[held[-1].lease_id] = held[-1]
        reply = labelling_pb2.NextTaskResponse(answered=project.answered(who), left=len(ours))
        if held:
            reply.left += len(held) - 1
            held[-1].expires = time.time() + _LEASE_S
            reply.task.CopyFrom(self._shown(request.project, held[-1]))
            return reply
        unfinished = project.unfinished()
        reply.no_task = labelling_pb2.NO_TASK_ALL_TAKEN if unfinished else labelling_pb2.NO_TASK_ALL_DONE
        reply.own_left = sum(project.has_place(name) for name in unfinished)
        reply.taken = len(unfinished) - reply.own_left
        return reply

    def _answer(self, request: labelling_pb2.AnswerRequest) -> labelling_pb2.AnswerResponse:
        project, who = self._project(request.project), _labeller(request.labeller)
        _refuse(verdicts.answer_problems(request))
        if request.lease_id in project.retracted:
            raise TaskRetracted("the task was taken back")
        lease = project.leases.get(request.lease_id)
        if lease is None or lease.labeller != who:
            raise UnknownLease("this labeller has no such lease")
        if lease.said is not None:
            if lease.said != request:
                raise LeaseAnswered("another answer was recorded under this lease")
            return labelling_pb2.AnswerResponse(duplicate=True, answered=project.answered(who))
        task = project.tasks[lease.task_id].new
        verdict = verdicts.in_added_order(request.verdict, lease.order)
        _refuse(verdicts.verdict_problems(task, verdict))
        if not project.is_free(lease):
            raise TaskTaken("the lease has ended, and others have the task now")
        lease.said = labelling_pb2.AnswerRequest()
        lease.said.CopyFrom(request)
        lease.answer = _given(task, lease, request, verdict)
        for i, event in enumerate(verdicts.signals_of(task, verdict)):
            event.MergeFrom(
                feedback_pb2.FeedbackEvent(
                    event_id=f"label:{lease.lease_id}" + (f":{i}" if i else ""),
                    generation_id=task.generation_id,
                    prompt=None if task.generation_id else task.prompt,
                    responses=() if task.generation_id else rules.texts_of(task),
                    annotator_id=who,
                    source=request.source,
                    tags={**task.tags, rules.SOURCE_TAG: rules.CONSOLE},
                    display_order=lease.order,
                    aspect=task.aspect,
                    guideline_version=request.guideline_version,
                    import_id=f"label:{lease.lease_id}",
                )
            )
            self._events.append(event)
        return labelling_pb2.AnswerResponse(answered=project.answered(who))

    def _undo(self, request: labelling_pb2.UndoRequest) -> labelling_pb2.UndoResponse:
        project, who = self._project(request.project), _labeller(request.labeller)
        given = [each for each in project.of(who) if each.said is not None and project.tasks[each.task_id].overlap]
        if not given:
            raise NothingToUndo("this labeller has no answer to take back")
        lease = max(given, key=lambda each: each.answer.answer_time.ToNanoseconds() if each.answer else 0)
        said = lease.said or labelling_pb2.AnswerRequest()
        self._take_back(lease)
        del project.leases[lease.lease_id]
        again = _Lease(uuid.uuid4().hex, lease.task_id, who, lease.order, lease.probability, time.time() + _LEASE_S)
        project.leases[again.lease_id] = again
        return labelling_pb2.UndoResponse(
            task=self._shown(request.project, again),
            verdict=said.verdict,
            comment=said.comment,
            answered=project.answered(who),
        )

    def _take_back(self, lease: _Lease) -> None:
        self._events[:] = [event for event in self._events if event.import_id != f"label:{lease.lease_id}"]

    def _progress(self, request: labelling_pb2.GetProgressRequest) -> labelling_pb2.GetProgressResponse:
        names = [request.project] if request.project else sorted(self._projects)
        return labelling_pb2.GetProgressResponse(projects=[_progress_of(name, self._project(name)) for name in names])

    def _list(self, request: labelling_pb2.ListAnswersRequest) -> labelling_pb2.ListAnswersResponse:
        project = self._project(request.project)
        given = [lease.answer for lease in project.leases.values() if lease.answer is not None]
        given.sort(key=lambda answer: answer.answer_time.ToNanoseconds())
        start, size = int(request.page_token or 0), request.page_size or 100
        token = str(start + size) if start + size < len(given) else ""
        return labelling_pb2.ListAnswersResponse(answers=given[start : start + size], next_page_token=token)

    def _set_guidelines(self, request: labelling_pb2.SetGuidelinesRequest) -> labelling_pb2.SetGuidelinesResponse:
        if problem := rules.project_problem(request.project):
            _refuse([("project", problem)])
        if len(request.text.encode()) > rules.MOST_GUIDELINE_BYTES:
            _refuse([("text", f"more than {rules.MOST_GUIDELINE_BYTES} bytes")])
        project = self._projects.setdefault(request.project, _Project())
        project.version = rules.guidelines_version(request.text)
        project.guidelines[project.version] = request.text
        return labelling_pb2.SetGuidelinesResponse(version=project.version)

    def _guidelines(self, request: labelling_pb2.GetGuidelinesRequest) -> labelling_pb2.GetGuidelinesResponse:
        project = self._project(request.project)
        version = request.version or project.version
        if version and version not in project.guidelines:
            raise UnknownGuidelines("this project has no such guidelines")
        return labelling_pb2.GetGuidelinesResponse(text=project.guidelines.get(version, ""), version=version)

    def _project(self, name: str) -> _Project:
        if name not in self._projects:
            raise UnknownProject(f"there is no project {name!r}")
        return self._projects[name]

    def _shown(self, name: str, lease: _Lease) -> labelling_pb2.Task:
        project = self._projects[name]
        shown = rules.shown_task(project.tasks[lease.task_id].new, lease.task_id, name, lease.lease_id, lease.order)
        shown.expire_time.CopyFrom(timestamp(lease.expires))
        shown.guideline_version = project.version
        return shown


def _given(
    task: labelling_pb2.NewTask,
    lease: _Lease,
    request: labelling_pb2.AnswerRequest,
    verdict: labelling_pb2.Verdict,
) -> labelling_pb2.GivenAnswer:
    return labelling_pb2.GivenAnswer(
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        prompt=task.prompt,
        candidates=task.candidates,
        display_order=lease.order,
        verdict=verdict,
        labeller=lease.labeller,
        source=request.source or feedback_pb2.SOURCE_HUMAN,
        answer_time=timestamp(time.time()),
        seconds=request.seconds if request.HasField("seconds") else None,
        guideline_version=request.guideline_version,
        comment=request.comment,
        aspect=task.aspect,
        tags=task.tags,
        draw=feedback_pb2.TaskDraw(probability=lease.probability),
        generation_id=task.generation_id,
    )


def _progress_of(name: str, project: _Project) -> labelling_pb2.Progress:
    given = [lease for lease in project.leases.values() if lease.said is not None]
    answers = [lease for lease in given if not lease.is_skip]
    kinds = Counter(lease.said.verdict.WhichOneof("verdict") or "" for lease in answers if lease.said)
    reasons = Counter(lease.said.verdict.skip.reason for lease in given if lease.is_skip and lease.said)
    labellers = [
        labelling_pb2.LabellerProgress(
            labeller=who,
            answers=sum(lease.labeller == who for lease in answers),
            skips=sum(lease.labeller == who and lease.is_skip for lease in given),
            seconds=sum(lease.said.seconds for lease in given if lease.labeller == who and lease.said),
            left=len(project.open_for(who)) + len(project.held_by(who)),
        )
        for who in sorted({lease.labeller for lease in project.leases.values()})
    ]
    return labelling_pb2.Progress(
        project=name,
        tasks=len(project.tasks),
        done=len(project.tasks) - len(project.unfinished()),
        open=sum(map(project.has_place, project.tasks)),
        leases=sum(lease.said is None and lease.takes_place for lease in project.leases.values()),
        answers=len(answers),
        answers_by_kind={("rating" if kind == "ratings" else kind): count for kind, count in kinds.items()},
        skips=reasons,
        agreement=_agreement(project),
        labellers=labellers,
        guideline_version=project.version,
    )


def _agreement(project: _Project) -> labelling_pb2.Agreement | None:
    both = same = 0
    for task_id, task in project.tasks.items():
        said = [
            verdicts.comparisons(len(task.new.candidates), lease.answer.verdict)
            for lease in project.of_task(task_id)
            if lease.answer is not None
        ]
        for i, one in enumerate(said):
            for other in said[:i]:
                pairs, agreed = verdicts.compared(one, other)
                both, same = both + pairs, same + agreed
    return labelling_pb2.Agreement(compared=both, agreed=same) if both else None


def _labeller(labeller: str) -> str:
    if not 1 <= len(labeller) <= rules.MOST_LABELLER_CHARACTERS:
        _refuse([("labeller", f"not 1 to {rules.MOST_LABELLER_CHARACTERS} characters")])
    return labeller


def _refuse(problems: Iterable[tuple[str, str]] | Iterator[tuple[str, str]]) -> None:
    if broken := [Violation(field, problem) for field, problem in problems]:
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in broken), violations=broken)
