"""What a valid task is, what names it, and how many labellers answer it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import MOST_IMPORT_ID_CHARACTERS
from rewardloop.v1 import common_pb2, labelling_pb2

MOST_CANDIDATES: Final = 8
MOST_OVERLAP: Final = 100
MOST_TAGS: Final = 14
MOST_TAG_CHARACTERS: Final = 64
MOST_GUIDELINE_BYTES: Final = 65_536
MOST_COMMENT_CHARACTERS: Final = 2_000
MOST_REASON_CHARACTERS: Final = 64
MOST_LABELLER_CHARACTERS: Final = 128
DEFAULT_SCALE: Final = (1.0, 5.0)

# The tags that the server sets on the signal of an answer, and the value of the first one.
SOURCE_TAG: Final = "source"
CONSOLE: Final = "console"
REPEAT_TAG: Final = "repeat"

_PROJECT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LEAST_CANDIDATES: Mapping[int, int] = {
    labelling_pb2.ANSWER_KIND_CHOICE: 2,
    labelling_pb2.ANSWER_KIND_RANKING: 2,
    labelling_pb2.ANSWER_KIND_RATING: 1,
    labelling_pb2.ANSWER_KIND_EDIT: 1,
}


def project_problem(project: str) -> str | None:
    """Return what is wrong with a project's name, or None."""
    if _PROJECT.fullmatch(project):
        return None
    return 'not 1 to 64 lower-case letters, digits, "-", "_" and ".", a letter or digit first'


def import_problems(request: labelling_pb2.AddTasksRequest) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an import, apart from its tasks: a field's path, and the problem."""
    if problem := project_problem(request.project):
        yield "project", problem
    if not 1 <= len(request.import_id) <= MOST_IMPORT_ID_CHARACTERS:
        yield "import_id", f"not 1 to {MOST_IMPORT_ID_CHARACTERS} characters"
    if not 0 <= request.shared_share <= 1:
        yield "shared_share", "not between 0 and 1"
    elif request.shared_share > 0 and not 2 <= request.shared_overlap <= MOST_OVERLAP:
        yield "shared_overlap", f"not 2 to {MOST_OVERLAP}"


def task_problems(task: labelling_pb2.NewTask) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a task, apart from the texts of its prompt and its candidates.

    The candidates of a generation must be filled in first.
    """
    count = len(task.candidates)
    if not 1 <= count <= MOST_CANDIDATES:
        yield "candidates", f"1 to {MOST_CANDIDATES} candidates, not {count}"
        return
    for i, candidate in enumerate(task.candidates):
        if len(candidate.version) > MOST_TAG_CHARACTERS:
            yield f"candidates[{i}].version", f"more than {MOST_TAG_CHARACTERS} characters"
    yield from _kinds(task.kinds, count)
    if task.HasField("rating_scale"):
        ends = task.rating_scale.minimum, task.rating_scale.maximum
        if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
            yield "rating_scale", "not two finite numbers of which the maximum is greater"
    if len(task.tags) > MOST_TAGS:
        yield "tags", f"more than {MOST_TAGS} tags"
    elif any(not 1 <= len(k) <= MOST_TAG_CHARACTERS or len(v) > MOST_TAG_CHARACTERS for k, v in task.tags.items()):
        yield "tags", f"a key that is not 1 to {MOST_TAG_CHARACTERS} characters long, or a longer value"
    for key in (SOURCE_TAG, REPEAT_TAG):
        if key in task.tags:
            yield "tags", f"{key} is set by the server"
    if not 0 <= task.overlap <= MOST_OVERLAP:
        yield "overlap", f"not 1 to {MOST_OVERLAP}"


def _kinds(kinds: Sequence[int], count: int) -> Iterator[tuple[str, str]]:
    if not kinds:
        yield "kinds", "empty"
    if len(set(kinds)) < len(kinds):
        yield "kinds", "names a kind twice"
    for i, kind in enumerate(kinds):
        least = _LEAST_CANDIDATES.get(kind)
        if least is None:
            yield f"kinds[{i}]", "not a known kind"
        elif count < least or (kind == labelling_pb2.ANSWER_KIND_CHOICE and count != 2):
            yield f"kinds[{i}]", f"not possible with {count} candidates"


def task_id(task: labelling_pb2.NewTask) -> str:
    """Return the 32 hex digits that name a task: a digest of its prompt, its candidates and what is asked about them.

    Neither tags, versions and overlap nor the order of the kinds are in it.
    """
    minimum, maximum = scale_of(task)
    asked = labelling_pb2.NewTask(
        generation_id=task.generation_id,
        prompt=task.prompt,
        candidates=[labelling_pb2.TaskCandidate(text=each.text) for each in task.candidates],
        kinds=sorted(task.kinds),
        rating_scale=labelling_pb2.RatingScale(minimum=minimum, maximum=maximum),
        aspect=task.aspect or REWARD,
    )
    return hashlib.blake2b(asked.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def scale_of(task: labelling_pb2.NewTask) -> tuple[float, float]:
    """Return the lowest and the highest grade of a task."""
    if not task.HasField("rating_scale"):
        return DEFAULT_SCALE
    return task.rating_scale.minimum, task.rating_scale.maximum


def overlap_of(task: labelling_pb2.NewTask, name: str, shared_share: float, shared_overlap: int) -> int:
    """Return how many labellers answer a task.

    Args:
        task: The task.
        name: Its id, whose digits decide whether it is shared, so that the same import shares the same tasks.
        shared_share: Share of the tasks that are shared.
        shared_overlap: How many labellers answer a shared task.
    """
    drawn = int.from_bytes(hashlib.blake2b(f"shared {name}".encode(), digest_size=8).digest(), "big") / 2**64
    return shared_overlap if drawn < shared_share else task.overlap or 1


def guidelines_version(text: str) -> str:
    """Return the version of a text of guidelines: 12 hex digits of its digest; empty for an empty text."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest() if text else ""


def texts_of(task: labelling_pb2.NewTask) -> list[str]:
    """Return the candidates' texts in the order in which they were added."""
    return [candidate.text for candidate in task.candidates]


def shown_task(
    task: labelling_pb2.NewTask, name: str, project: str, lease_id: str, order: Sequence[int]
) -> labelling_pb2.Task:
    """Return a task as its labeller sees it, with its candidates in the order ``order``; without the lease's end."""
    shown = labelling_pb2.Task(
        lease_id=lease_id,
        task_id=name,
        project=project,
        prompt=task.prompt if task.HasField("prompt") else common_pb2.Prompt(),
        candidates=[task.candidates[i].text for i in order],
        kinds=task.kinds,
        aspect=task.aspect,
        tags=task.tags,
    )
    if labelling_pb2.ANSWER_KIND_RATING in task.kinds:
        shown.rating_scale.minimum, shown.rating_scale.maximum = scale_of(task)
    return shown
