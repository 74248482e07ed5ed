"""Records answers: begin -> append the signals -> commit, and takes them back: begin -> retract the signals -> forget.

Tasks and signals have different hash tags, so no one script writes both. What was begun is noted with the task first.
If a process dies before the end, another one ends it: signals are appended once by their event_ids, and taking them
back twice takes back no more.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

import structlog
from google.protobuf import timestamp_pb2

from rewardloop.formats.labelling.tasks import CONSOLE, REPEAT_TAG, SOURCE_TAG, texts_of
from rewardloop.formats.labelling.verdicts import in_added_order, signals_of, verdict_problems
from rewardloop.v1 import feedback_pb2, labelling_pb2
from rewardloop_server.calls.errors import (
    InvalidRequest,
    LeaseAnswered,
    NothingToUndo,
    RedisUnavailable,
    RewardloopError,
    StoreFull,
    TaskRetracted,
    TaskTaken,
    UnknownLease,
    Violation,
)
from rewardloop_server.calls.validate import Limits, validate_event
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import fill_in
from rewardloop_server.feedback.signal import Signal, sender_of, sent
from rewardloop_server.labelling.labeller import Labeller
from rewardloop_server.labelling.queue import Lease, Offered, StoredTask, TaskQueue
from rewardloop_server.observe.labelling_metrics import LabellingMetrics

log = structlog.get_logger()

_ABANDONED_MS = 10_000
_CARRIED_OUT = ("answered", "undoing")


class Recorder:
    """Makes signals of answers, and takes them back.

    Args:
        queue: The tasks and answers.
        intake: Where the signals go.
        limits: Bounds of one signal.
        metrics: Where answers are counted.
        on_signal: Called with the kind of each signal that is appended.
    """

    def __init__(
        self,
        queue: TaskQueue,
        intake: Intake,
        limits: Limits,
        metrics: LabellingMetrics,
        on_signal: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._queue = queue
        self._intake = intake
        self._limits = limits
        self._metrics = metrics
        self._on_signal = on_signal

    async def answer(self, request: labelling_pb2.AnswerRequest, labeller: Labeller) -> bool:
        """Record an answer whose own fields were checked. Returns whether it had been recorded before.

        Raises:
            InvalidRequest, UnknownLease, LeaseAnswered, TaskTaken, TaskRetracted: It is not recorded.
            TooManySignals, ReplayedSignal: The same, and the labeller keeps the task.
            RedisUnavailable, StoreFull: It may have been recorded. Sending it again is the way to be sure.
        """
        lease = await self._queue.lease(request.project, request.lease_id)
        if lease is None or lease.who != labeller.key:
            raise UnknownLease("this labeller has no such lease")
        task = await self._queue.task(request.project, lease.task_id)
        if task is None or lease.state == "retracted":
            raise TaskRetracted("the task was taken back")
        given = self._checked(request, labeller, lease, task)
        begun = await self._queue.begin(
            request.project, labeller.key, lease.lease_id, _digest(request), given, len(task.new.candidates)
        )
        match begun:
            case "unknown":
                raise UnknownLease("this labeller has no such lease")
            case "other":
                raise LeaseAnswered("another answer was recorded under this lease")
            case "taken":
                raise TaskTaken("the lease has ended, and others have the task now")
            case "retracted":
                raise TaskRetracted("the task was taken back")
            case "answered":
                return True
        # What was begun is carried out as it was begun, so that the signals are the same however often they are sent.
        return not await self._carry_out(request.project, lease.lease_id)

    async def undo(self, project: str, labeller: Labeller) -> tuple[Offered, labelling_pb2.GivenAnswer]:
        """Take back the labeller's last answer. Returns its task, given again, and the answer as it was.

        Of an answer that was erased nothing is left but that it was one.

        Raises:
            NothingToUndo: There is none.
            TaskTaken: It is a skip, and others have the task now.
            RedisUnavailable, StoreFull: It may have been taken back.
        """
        begun = await self._queue.take_back(project, labeller)
        if begun == "none":
            raise NothingToUndo("this labeller has no answer to take back")
        if begun == "taken":
            raise TaskTaken("the task was skipped, and others have it now")
        lease_id, again = begun
        lease = await self._queue.lease(project, lease_id)
        task = None if lease is None else await self._queue.task(project, lease.task_id)
        if lease is None or task is None:
            raise RedisUnavailable("the answer was taken back meanwhile: ask for the next task")
        # If another process was quicker, which ends what dead ones have begun, the task is held under the same lease.
        expires = await self._forget(project, lease) or int(time.time() * 1000) + self._queue.rules.lease_ms
        current = await self._queue.guidelines(project, "")
        offered = Offered(again, lease.task_id, lease.order, expires, task.new, current[1] if current else "")
        return offered, lease.given or labelling_pb2.GivenAnswer()

    async def take_back_all(self, project: str, leases: list[str]) -> int:
        """Take back the answers under leases whose tasks were taken back. Returns how many they were."""
        gone = 0
        for lease_id in leases:
            if await self._settle(project, lease_id):
                gone += 1
        return gone

    async def settle_abandoned(self, project: str) -> None:
        """End what processes have begun that died. Raises RedisUnavailable or StoreFull."""
        for lease_id in await self._queue.pending(project, _ABANDONED_MS):
            try:
                await self._settle(project, lease_id)
            except (RedisUnavailable, StoreFull):
                raise
            except RewardloopError as error:
                log.warning("a begun answer was refused, and its task given back", project=project, error=str(error))

    async def _settle(self, project: str, lease_id: str) -> bool:
        """Carry out what was begun under a lease. Returns whether an answer was taken back."""
        lease = await self._queue.lease(project, lease_id)
        if lease is not None and lease.state == "pending":
            if lease.given is None:  # it was erased before it was recorded, with its signals if there were any
                await self._queue.revert(project, lease_id)
                return False
            await self._carry_out(project, lease_id)
            lease = await self._queue.lease(project, lease_id)  # its task may have been taken back meanwhile
        if lease is None or lease.state != "undoing":
            return False
        return await self._forget(project, lease) != 0

    async def _carry_out(self, project: str, lease_id: str) -> bool:
        """Append the signals of a pending answer, and commit it. Returns whether this call committed it."""
        lease = await self._queue.lease(project, lease_id)
        if lease is None or lease.state in _CARRIED_OUT:
            return False  # by another call
        if lease.state != "pending" or lease.given is None:
            raise RedisUnavailable("another call with this answer was refused: send it again")
        task = await self._queue.task(project, lease.task_id)
        if task is None:
            raise TaskRetracted("the task was taken back")
        events = events_of(project, lease, lease.given, task)
        signals = [self._signal(event, task, lease.given) for event in events]
        outcomes = await self._intake.append_to_stream([each for each in signals if isinstance(each, Signal)])
        refused = [each for each in (*signals, *outcomes) if isinstance(each, RewardloopError)]
        if refused:
            if len(refused) < len(signals):  # some of its grades were appended
                await self._intake.retract(lease.import_id, lease.given.caller, _age_s(lease.given))
            await self._queue.revert(project, lease_id)
            raise refused[0]
        if not await self._queue.commit(project, lease_id):
            now = await self._queue.lease(project, lease_id)
            if now is None or now.state in _CARRIED_OUT:
                return False
            await self._intake.retract(lease.import_id, lease.given.caller, _age_s(lease.given))
            raise RedisUnavailable("another call with this answer was refused: send it again")
        self._metrics.answered(lease.given.verdict, "recorded")
        for event in events:
            self._on_signal(event.WhichOneof("signal") or "none")
        return True

    async def _forget(self, project: str, lease: Lease) -> int | None:
        """Take back the signals of an answer that is being undone, and remove it; see `TaskQueue.forget`."""
        if lease.given is not None and not lease.given.verdict.HasField("skip"):
            await self._intake.retract(lease.import_id, lease.given.caller, _age_s(lease.given))
        expires = await self._queue.forget(project, lease.lease_id)
        if expires != 0:
            self._metrics.undone_total.inc()
        return expires

    def _checked(
        self, request: labelling_pb2.AnswerRequest, labeller: Labeller, lease: Lease, task: StoredTask
    ) -> labelling_pb2.GivenAnswer:
        """Return the answer as it is kept. Raises InvalidRequest if its verdict or its signals are not valid."""
        verdict = in_added_order(request.verdict, lease.order)
        if problems := [Violation(field, problem) for field, problem in verdict_problems(task.new, verdict)]:
            raise InvalidRequest(problems)
        now = timestamp_pb2.Timestamp()
        now.FromNanoseconds(time.time_ns() // 1_000_000 * 1_000_000)
        given = labelling_pb2.GivenAnswer(
            lease_id=lease.lease_id,
            task_id=lease.task_id,
            display_order=lease.order,
            verdict=verdict,
            labeller=labeller.name,
            caller=labeller.caller,
            source=request.source or feedback_pb2.SOURCE_HUMAN,
            answer_time=now,
            seconds=request.seconds if request.HasField("seconds") else None,
            guideline_version=request.guideline_version,
            comment=request.comment,
            is_repeat=lease.is_repeat,
            draw=feedback_pb2.TaskDraw(
                probability=lease.probability, is_uniform=lease.is_uniform, information=lease.information
            ),
        )
        for event in events_of("", lease, given, task):
            event.ClearField("task")
            validate_event(event, self._limits)
        return given

    def _signal(
        self, event: feedback_pb2.FeedbackEvent, task: StoredTask, given: labelling_pb2.GivenAnswer
    ) -> Signal | RewardloopError:
        """Return the signal of an event, filled in from the task's generation, or what is wrong with it then."""
        signal = sent(event, sender_of(given.caller, time.time_ns()))
        problem = None if task.generation is None else fill_in(event, task.generation, self._limits)
        return problem or signal


def events_of(
    project: str, lease: Lease, given: labelling_pb2.GivenAnswer, task: StoredTask
) -> list[feedback_pb2.FeedbackEvent]:
    """Return the signals of an answer, always the same for the same answer. Those about a generation only name it."""
    new = task.new
    is_own = not new.generation_id
    tags = {**new.tags, SOURCE_TAG: CONSOLE, **({REPEAT_TAG: "true"} if given.is_repeat else {})}
    draw = feedback_pb2.TaskDraw(project=project, task_id=task.task_id)
    draw.MergeFrom(given.draw)
    if given.HasField("seconds"):
        draw.seconds = given.seconds
    events = signals_of(new, given.verdict)
    for i, event in enumerate(events):
        event.MergeFrom(
            feedback_pb2.FeedbackEvent(
                event_id=f"{lease.import_id}:{i}",
                generation_id=new.generation_id,
                prompt=new.prompt if is_own else None,
                responses=texts_of(new) if is_own else (),
                annotator_id=given.labeller,
                source=given.source,
                tags=tags,
                event_time=given.answer_time,
                display_order=given.display_order,
                aspect=new.aspect,
                guideline_version=given.guideline_version,
                import_id=lease.import_id,
                task=draw,
            )
        )
    return events


def _age_s(given: labelling_pb2.GivenAnswer) -> float | None:
    """Return how long ago an answer was given, before which none of its signals was appended."""
    return time.time() - given.answer_time.ToNanoseconds() / 1e9 if given.HasField("answer_time") else None


def _digest(request: labelling_pb2.AnswerRequest) -> str:
    """Return a digest of what is said, by which the same answer is known when it is sent again."""
    said = labelling_pb2.AnswerRequest(
        verdict=request.verdict,
        guideline_version=request.guideline_version,
        comment=request.comment,
        source=request.source or feedback_pb2.SOURCE_HUMAN,
    )
    return hashlib.blake2b(said.SerializeToString(deterministic=True), digest_size=12).hexdigest()


async def settle_all(queue: TaskQueue, recorder: Recorder, metrics: LabellingMetrics, every_s: float = 5.0) -> None:
    """End what dead processes have begun, and show how many tasks are open, again and again until cancelled."""
    while True:
        try:
            open_tasks = 0
            for project in await queue.projects():
                await recorder.settle_abandoned(project)
                open_tasks += (await queue.figures(project)).open
            metrics.open_tasks.set(open_tasks)
        except (RedisUnavailable, StoreFull):
            metrics.open_tasks.set(float("nan"))
        await asyncio.sleep(every_s)
