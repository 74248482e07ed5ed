"""How far a project is, and the answers that were given, as messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rewardloop.v1 import labelling_pb2
from rewardloop_server.calls.errors import InvalidRequest, Violation
from rewardloop_server.labelling.labeller import Labeller
from rewardloop_server.labelling.queue import Figures, TaskQueue

DEFAULT_PAGE, MOST_OF_A_PAGE = 100, 1000
# A place in the stream of answers. Redis refuses numbers of more than 64 bits.
_PLACE = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


async def progress_of(queue: TaskQueue, project: str, only: Labeller | None) -> labelling_pb2.Progress:
    """Return how far a project is. With ``only`` nothing is said about other labellers."""
    people = await queue.people(project) if only is None else [only.key]
    figures = await queue.figures(project, people)
    found = [(await queue.person(project, who), figures.left[who]) for who in people]
    labellers = [_labeller(person, left) for person, left in found if person]
    return _progress(project, figures, sorted(labellers, key=lambda each: (each.caller, each.labeller)))


def _progress(
    project: str, figures: Figures, labellers: Sequence[labelling_pb2.LabellerProgress]
) -> labelling_pb2.Progress:
    return labelling_pb2.Progress(
        project=project,
        tasks=figures.of("tasks"),
        done=figures.of("done"),
        open=figures.open,
        given_up=figures.of("given_up"),
        leases=figures.leases,
        answers=figures.of("answers"),
        answers_by_kind={kind: int(count) for kind, count in figures.kinds.items()},
        skips={reason: int(count) for reason, count in figures.skips.items()},
        unscored=figures.unscored,
        agreement=_agreement(figures.of("compared"), figures.of("agreed")),
        self_agreement=_agreement(figures.of("self_compared"), figures.of("self_agreed")),
        labellers=labellers,
        guideline_version=figures.meta.get("guidelines", ""),
    )


def _agreement(compared: int, agreed: int) -> labelling_pb2.Agreement | None:
    return labelling_pb2.Agreement(compared=compared, agreed=agreed) if compared else None


def _labeller(person: Mapping[str, str], left: int) -> labelling_pb2.LabellerProgress:
    def count(name: str) -> int:
        return int(person.get(name, 0))

    made = labelling_pb2.LabellerProgress(
        labeller=person.get("labeller", ""),
        caller=person.get("caller", ""),
        answers=count("answers"),
        skips=count("skips"),
        repeats=count("repeats"),
        seconds=count("ms") / 1000,
        agreement=_agreement(count("compared"), count("agreed")),
        left=left,
    )
    if "last" in person:
        made.last_time.FromMilliseconds(count("last"))
    return made


async def page_of(queue: TaskQueue, request: labelling_pb2.ListAnswersRequest) -> labelling_pb2.ListAnswersResponse:
    """Return a page of answers. Raises InvalidRequest for a size or a token that no page has."""
    size = request.page_size or DEFAULT_PAGE
    if not 1 <= size <= MOST_OF_A_PAGE:
        raise InvalidRequest([Violation("page_size", f"not 1 to {MOST_OF_A_PAGE}")])
    if request.page_token and not _PLACE.fullmatch(request.page_token):
        raise InvalidRequest([Violation("page_token", "not a token of a page before")])
    found = await queue.answers(request.project, request.page_token, size + 1)
    answers = []
    for _, lease_id in found[:size]:
        lease = await queue.lease(request.project, lease_id)
        task = None if lease is None else await queue.task(request.project, lease.task_id)
        if lease is None or lease.given is None or task is None:
            continue  # it was taken back meanwhile
        answer = lease.given
        answer.prompt.CopyFrom(task.new.prompt)
        answer.candidates.extend(task.new.candidates)
        answer.aspect, answer.generation_id = task.new.aspect, task.new.generation_id
        answer.tags.update(task.new.tags)
        answers.append(answer)
    token = found[size - 1][0] if len(found) > size else ""
    return labelling_pb2.ListAnswersResponse(answers=answers, next_page_token=token)
