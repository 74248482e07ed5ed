"""Python values for the requests and replies of the LabellingService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from rewardloop.v1 import common_pb2, labelling_pb2
from rewardloop_client._errors import RewardloopError
from rewardloop_client._types import PromptLike, SourceName

AnswerKindName: TypeAlias = Literal["choice", "ranking", "rating", "edit"]
NoTaskName: TypeAlias = Literal["all_done", "all_taken", "unspecified"]


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to add: either a ``prompt`` with ``candidates``, or the ``generation_id`` that gave both.

    Attributes:
        kinds: How it may be answered, at least one.
        prompt: As of `RewardloopClient.score`.
        candidates: 1 to 8 responses.
        versions: Who gave each candidate, which labellers are never told; empty if nobody says it.
        generation_id: The generation whose candidates are judged.
        scale: Lowest and highest grade; None for 1 to 5.
        aspect: What the answer judges: the name of the reward model that learns from it; empty for "reward".
        tags: Free labels by which results can be sliced, at most 14.
        overlap: How many labellers are to answer it.
    """

    kinds: Sequence[AnswerKindName]
    prompt: PromptLike | None = None
    candidates: Sequence[str] = ()
    versions: Sequence[str] = ()
    generation_id: str = ""
    scale: tuple[float, float] | None = None
    aspect: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    overlap: int = 1


@dataclass(frozen=True, slots=True)
class AddedTask:
    """A task of the project; ``duplicate`` if the project had it before."""

    task_id: str
    duplicate: bool


AddOutcome: TypeAlias = AddedTask | RewardloopError


@dataclass(frozen=True, slots=True)
class RetractedTasks:
    """How many tasks, and answers about them, were taken back."""

    tasks: int
    answers: int


@dataclass(frozen=True, slots=True)
class LabellingTask:
    """A task as its labeller sees it.

    Attributes:
        lease_id: Names it in `answer`.
        task_id: Digest of its content.
        project: Whose task it is.
        prompt: The prompt as a message, which every call of the client takes.
        candidates: The responses in the order in which they are to be shown. Indices of the answer count them from 0.
        kinds: How it may be answered.
        scale: Lowest and highest grade; None unless "rating" is among the kinds.
        aspect: What the answer judges; empty for "reward".
        tags: Its labels.
        expire_time: When the lease ends, in UTC.
        guideline_version: The project's present guidelines; empty if there are none.
    """

    lease_id: str
    task_id: str
    project: str
    prompt: common_pb2.Prompt
    candidates: tuple[str, ...]
    kinds: tuple[AnswerKindName, ...]
    scale: tuple[float, float] | None
    aspect: str
    tags: Mapping[str, str]
    expire_time: datetime
    guideline_version: str


@dataclass(frozen=True, slots=True)
class Offer:
    """The reply to a labeller who asks for a task.

    Attributes:
        task: None if there is none for this labeller.
        no_task: Why there is none: "all_done", or "all_taken" if some may come free again. None if there is one.
        answered: How many tasks of the project the labeller has answered.
        left: How many more the labeller may get now.
        own_left: Without a task: how many that the labeller has answered or skipped wait for other labellers.
        taken: Without a task: how many others have now.
    """

    task: LabellingTask | None
    no_task: NoTaskName | None
    answered: int
    left: int
    own_left: int = 0
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """A recorded answer: whether it had been recorded before, and how many tasks the labeller has answered."""

    duplicate: bool
    answered: int


@dataclass(frozen=True, slots=True)
class Undone:
    """An answer that was taken back: its task again, what the labeller had said, and how many answers are left."""

    task: LabellingTask
    verdict: labelling_pb2.Verdict
    comment: str
    answered: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pairs of answers about the same two candidates, and those of them that say the same."""

    compared: int
    agreed: int

    @property
    def share(self) -> float:
        """Return the share that says the same."""
        return self.agreed / self.compared


@dataclass(frozen=True, slots=True)
class LabellerProgress:
    """Counts of the work of one labeller. ``seconds`` is the sum over the answers and skips whose seconds are known.

    ``left`` is how many tasks the labeller may get now, with those that the labeller has already.
    """

    labeller: str
    caller: str
    answers: int
    skips: int
    repeats: int
    seconds: float
    agreement: Agreement | None
    last_time: datetime | None
    left: int = 0


@dataclass(frozen=True, slots=True)
class LabellingProgress:
    """How far a project is.

    Attributes:
        project: Its name.
        tasks: Tasks that were added and not taken back.
        done: Tasks that have all the answers that are wanted.
        open: Tasks that somebody may get now.
        given_up: Tasks that too many labellers skipped.
        leases: Leases that have not ended.
        answers: Answers, without skips and repeats.
        answers_by_kind: The same, by kind of signal.
        skips: Skips by reason.
        unscored: Tasks whose expected information is not known yet.
        agreement: Between labellers; None if no two have compared the same candidates.
        self_agreement: Of labellers with themselves; None if no task was repeated.
        labellers: What each has done; the asker alone if the caller has only the role label.
        guideline_version: The present guidelines; empty if there are none.
    """

    project: str
    tasks: int
    done: int
    open: int
    given_up: int
    leases: int
    answers: int
    answers_by_kind: Mapping[str, int]
    skips: Mapping[str, int]
    unscored: int
    agreement: Agreement | None
    self_agreement: Agreement | None
    labellers: tuple[LabellerProgress, ...]
    guideline_version: str


@dataclass(frozen=True, slots=True)
class Draw:
    """How a task came to its labeller.

    Attributes:
        probability: With which the task was drawn among those that the labeller could get.
        is_uniform: The task was drawn uniformly.
        information: What the answer was expected to tell the reward model; None if the model had not said.
    """

    probability: float
    is_uniform: bool
    information: float | None


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer or a skip, with what its labeller was not told.

    Attributes:
        lease_id: The lease under which it was given.
        task_id: Digest of the task's content.
        prompt: The prompt as a message.
        candidates: The responses in the order in which they were added.
        versions: Who gave each of them; empty texts if nobody says it.
        display_order: Indices of the candidates in the order in which the labeller saw them.
        verdict: What the labeller said; its indices count ``candidates``.
        labeller: Who said it.
        caller: By whose credentials; empty without authentication.
        source: "human" or "llm_judge".
        answer_time: When it came, in UTC.
        seconds: How long the labeller took; None if nobody measured.
        guideline_version: The guidelines that the labeller saw; empty if there were none.
        comment: Why the labeller says so.
        aspect: What the answer judges; empty for "reward".
        tags: The task's labels.
        is_repeat: The labeller had answered the task before.
        draw: How the task came to the labeller.
        generation_id: The generation that gave the candidates; empty if there is none.
    """

    lease_id: str
    task_id: str
    prompt: common_pb2.Prompt
    candidates: tuple[str, ...]
    versions: tuple[str, ...]
    display_order: tuple[int, ...]
    verdict: labelling_pb2.Verdict
    labeller: str
    caller: str
    source: SourceName
    answer_time: datetime
    seconds: float | None
    guideline_version: str
    comment: str
    aspect: str
    tags: Mapping[str, str]
    is_repeat: bool
    draw: Draw
    generation_id: str


@dataclass(frozen=True, slots=True)
class AnswerPage:
    """Answers, oldest first. ``next_page_token`` is empty on the last page."""

    answers: tuple[GivenAnswer, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Guidelines:
    """A text in Markdown and its version; both are empty if there are no guidelines."""

    text: str
    version: str
