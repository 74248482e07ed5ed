"""The methods of `RewardloopClient.labelling`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

    def __call__(self, steps: Steps[T]) -> T: ...


class Labelling:
    """Hands out tasks to labellers and records their answers: `RewardloopClient.labelling`.

    Every method raises a subclass of RewardloopError when its call fails. ``labeller`` is an opaque id of the person or
    the judge model. If it is empty, it is the caller's name; without authentication it must be given. ``timeout_s``
    bounds a call with all its attempts; None stands for the client's own.
    """

    def __init__(self, rules: CallRules, drive: Drive) -> None:
        self._rules = rules
        self._drive = drive

    def add_tasks(
        self,
        project: str,
        tasks: Iterable[NewTask],
        *,
        import_id: str,
        shared_share: float = 0.0,
        shared_overlap: int = 0,
        timeout_s: float | None = None,
    ) -> list[AddOutcome]:
        """Add tasks to a project, and make the project with its first one. Needs the role admin.

        Args:
            project: Its name: lower-case letters, digits, "-", "_" and ".".
            tasks: The tasks. One that the project has already is a duplicate.
            import_id: The import that brings them, by which they can be taken back.
            shared_share: Share of the tasks that ``shared_overlap`` labellers are to answer.
            shared_overlap: At least 2 if the share is above 0.
            timeout_s: Seconds for all calls.

        Returns:
            One outcome for each task, in order: an `AddedTask`, or the error with which it failed.
        """
        shared = (shared_share, shared_overlap)
        return self._drive(
            calls.add_tasks(project, tasks, import_id, shared, self._rules.policy, self._rules.limit(timeout_s))
        )

    def add_messages(
        self,
        project: str,
        tasks: Sequence[labelling_pb2.NewTask],
        *,
        import_id: str,
        shared: tuple[float, int] = (0.0, 0),
        timeout_s: float | None = None,
    ) -> list[AddOutcome]:
        """Add tasks that are messages already, as `add_tasks` does. ``shared`` is the share and the overlap."""
        return self._drive(
            calls.add_messages(project, tasks, import_id, shared, self._rules.policy, self._rules.limit(timeout_s))
        )

    def retract_tasks(
        self, project: str, import_id: str, *, answers: bool = False, timeout_s: float | None = None
    ) -> RetractedTasks:
        """Take back the tasks of an import, and with ``answers`` what was answered about them. Needs the role admin."""
        return self._run(calls.retract_tasks(project, import_id, answers), timeout_s)

    def next_task(self, project: str, *, labeller: str = "", timeout_s: float | None = None) -> Offer:
        """Return the labeller's task: the one that the labeller has, or a new one. Needs the role label.

        Raises:
            UnknownProject: There is no such project.
        """
        return self._run(calls.next_task(project, labeller), timeout_s)

    def answer(  # noqa: PLR0913 - the parts of one answer
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
        """Record an answer, and return once it is durable. Needs the role label.

        Args:
            project: The task's project.
            lease_id: The task's lease.
            verdict: Made by `Verdict`; its indices count the candidates in the order in which they were shown.
            labeller: Whose task it is.
            seconds: How long the labeller took.
            guideline_version: The guidelines that the labeller saw.
            comment: Why the labeller says so.
            source: "human" or "llm_judge".
            timeout_s: Seconds for the call.

        Raises:
            UnknownLease: The labeller has no such lease.
            LeaseAnswered: Another answer was recorded under it.
            TaskTaken: The lease has ended, and others have the task now.
            TaskRetracted: The task was taken back.
        """
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
        return self._run(call, timeout_s)

    def undo(self, project: str, *, labeller: str = "", timeout_s: float | None = None) -> Undone:
        """Take back the labeller's last answer, and give its task again. Needs the role label.

        Raises:
            NothingToUndo: The labeller has no answer to take back.
        """
        return self._run(calls.undo(project, labeller), timeout_s)

    def progress(
        self, project: str = "", *, labeller: str = "", timeout_s: float | None = None
    ) -> list[LabellingProgress]:
        """Return how far a project is, or all projects by name. Needs the role label, view or admin."""
        return self._run(calls.progress(project, labeller), timeout_s)

    def list_answers(
        self, project: str, *, page_size: int = 100, page_token: str = "", timeout_s: float | None = None
    ) -> AnswerPage:
        """Return answers and skips, oldest first. Needs the role view or admin."""
        return self._run(calls.list_answers(project, page_size, page_token), timeout_s)

    def answers(self, project: str, *, page_size: int = 500) -> Iterator[GivenAnswer]:
        """Yield all answers and skips of a project, oldest first, by as many calls of `list_answers` as it takes."""
        token = ""
        while True:
            page = self.list_answers(project, page_size=page_size, page_token=token)
            yield from page.answers
            if not (token := page.next_page_token):
                return

    def set_guidelines(self, project: str, text: str, *, timeout_s: float | None = None) -> str:
        """Make a text in Markdown the guidelines of a project, and return their version. Needs the role admin."""
        return self._run(calls.set_guidelines(project, text), timeout_s)

    def guidelines(self, project: str, *, version: str = "", timeout_s: float | None = None) -> Guidelines:
        """Return the present guidelines of a project, or those of a version. Needs the role label, view or admin.

        Raises:
            UnknownGuidelines: There is no such version.
        """
        return self._run(calls.guidelines(project, version), timeout_s)

    def _run(self, call: Call[T], timeout_s: float | None) -> T:
        return self._drive(steps_of(call, self._rules.policy, self._rules.limit(timeout_s)))
