"""The methods of `AsyncRewardloopClient.labelling`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Protocol, TypeVar

from rewardloop.v1 import labelling_pb2
from rewardloop_client._call_rules import CallRules
from rewardloop_client._retry import Call, Steps, steps_of
from rewardloop_client._types import SourceName
from rewardloop_client.labelling import calls
from rewardloop_client.labelling.types import (
    AddOutcome,
    Answered,
    AnswerPage,
    GivenAnswer,
    Guidelines,
    LabellingProgress,
    NewTask,
    Offer,
    RetractedTasks,
    Undone,
)

T = TypeVar("T")


class Drive(Protocol):
    """Carries out the steps of a call."""

    async def __call__(self, steps: Steps[T]) -> T: ...


class AsyncLabelling:
    """`Labelling` for asyncio, with the same arguments, results and exceptions."""

    def __init__(self, rules: CallRules, drive: Drive) -> None:
        self._rules = rules
        self._drive = drive

    async def add_tasks(
        self,
        project: str,
        tasks: Iterable[NewTask],
        *,
        import_id: str,
        shared_share: float = 0.0,
        shared_overlap: int = 0,
        timeout_s: float | None = None,
    ) -> list[AddOutcome]:
        """Add tasks to a project. See `Labelling.add_tasks`."""
        shared = (shared_share, shared_overlap)
        return await self._drive(
            calls.add_tasks(project, tasks, import_id, shared, self._rules.policy, self._rules.limit(timeout_s))
        )

    async def retract_tasks(
        self, project: str, import_id: str, *, answers: bool = False, timeout_s: float | None = None
    ) -> RetractedTasks:
        """Take back the tasks of an import. See `Labelling.retract_tasks`."""
        return await self._run(calls.retract_tasks(project, import_id, answers), timeout_s)

    async def next_task(self, project: str, *, labeller: str = "", timeout_s: float | None = None) -> Offer:
        """Return the labeller's task. See `Labelling.next_task`."""
        return await self._run(calls.next_task(project, labeller), timeout_s)

    async def answer(  # noqa: PLR0913 - the parts of one answer
        self,
        project: str,
        lease_id: str,
        verdict: labelling_pb2.Verdict,
        *,
        labeller: str = "",
        seconds: float | None = None,
        guideline_version: str = "",
        comment: str = "",
        source: SourceName = "human",
        timeout_s: float | None = None,
    ) -> Answered:
        """Record an answer, and return once it is durable. See `Labelling.answer`."""
        call = calls.answer(
            project,
            lease_id,
            verdict,
            labeller,
            seconds=seconds,
            guideline_version=guideline_version,
            comment=comment,
            source=source,
        )
        return await self._run(call, timeout_s)

    async def undo(self, project: str, *, labeller: str = "", timeout_s: float | None = None) -> Undone:
        """Take back the labeller's last answer. See `Labelling.undo`."""
        return await self._run(calls.undo(project, labeller), timeout_s)

    async def progress(
        self, project: str = "", *, labeller: str = "", timeout_s: float | None = None
    ) -> list[LabellingProgress]:
        """Return how far projects are. See `Labelling.progress`."""
        return await self._run(calls.progress(project, labeller), timeout_s)

    async def list_answers(
        self, project: str, *, page_size: int = 100, page_token: str = "", timeout_s: float | None = None
    ) -> AnswerPage:
        """Return a page of answers. See `Labelling.list_answers`."""
        return await self._run(calls.list_answers(project, page_size, page_token), timeout_s)

    async def answers(self, project: str, *, page_size: int = 500) -> AsyncIterator[GivenAnswer]:
        """Yield all answers and skips of a project, oldest first. See `Labelling.answers`."""
        token = ""
        while True:
            page = await self.list_answers(project, page_size=page_size, page_token=token)
            for answer in page.answers:
                yield answer
            if not (token := page.next_page_token):
                return

    async def set_guidelines(self, project: str, text: str, *, timeout_s: float | None = None) -> str:
        """Set the guidelines of a project. See `Labelling.set_guidelines`."""
        return await self._run(calls.set_guidelines(project, text), timeout_s)

    async def guidelines(self, project: str, *, version: str = "", timeout_s: float | None = None) -> Guidelines:
        """Return guidelines of a project. See `Labelling.guidelines`."""
        return await self._run(calls.guidelines(project, version), timeout_s)

    async def _run(self, call: Call[T], timeout_s: float | None) -> T:
        return await self._drive(steps_of(call, self._rules.policy, self._rules.limit(timeout_s)))
