"""What a labeller says about a task: what is valid, the signals that it makes, and how two answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

from rewardloop.formats.labelling.tasks import (
    MOST_COMMENT_CHARACTERS,
    MOST_REASON_CHARACTERS,
    scale_of,
    texts_of,
)
from rewardloop.formats.signals import MOST_GUIDELINE_CHARACTERS, signal_problems
from rewardloop.v1 import feedback_pb2, labelling_pb2

# The fields of a verdict, and the kind of answer that each needs among the task's. A skip needs none.
NEEDED_KINDS: Final[Mapping[str, labelling_pb2.AnswerKind]] = {
    "choice": labelling_pb2.ANSWER_KIND_CHOICE,
    "tie": labelling_pb2.ANSWER_KIND_CHOICE,
    "ranking": labelling_pb2.ANSWER_KIND_RANKING,
    "ratings": labelling_pb2.ANSWER_KIND_RATING,
    "edit": labelling_pb2.ANSWER_KIND_EDIT,
}
VERDICTS: Final = (*NEEDED_KINDS, "skip")

_MOST_LEASE_CHARACTERS: Final = 64
_LONGEST_SECONDS: Final = 7 * 86_400.0


def answer_problems(request: labelling_pb2.AnswerRequest) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an answer whatever its task: a field's path within the request, and the problem."""
    if not 1 <= len(request.lease_id) <= _MOST_LEASE_CHARACTERS:
        yield "lease_id", f"not 1 to {_MOST_LEASE_CHARACTERS} characters"
    if request.HasField("seconds") and not 0 <= request.seconds <= _LONGEST_SECONDS:
        yield "seconds", "not between 0 and those of a week"
    if len(request.guideline_version) > MOST_GUIDELINE_CHARACTERS:
        yield "guideline_version", f"more than {MOST_GUIDELINE_CHARACTERS} characters"
    if len(request.comment) > MOST_COMMENT_CHARACTERS:
        yield "comment", f"more than {MOST_COMMENT_CHARACTERS} characters"
    known = (feedback_pb2.SOURCE_UNSPECIFIED, feedback_pb2.SOURCE_HUMAN, feedback_pb2.SOURCE_LLM_JUDGE)
    if request.source not in known:
        yield "source", "neither human nor llm_judge"
    if request.verdict.WhichOneof("verdict") is None:
        yield "verdict", f"none of {', '.join(VERDICTS)} is set"


def verdict_problems(task: labelling_pb2.NewTask, verdict: labelling_pb2.Verdict) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a verdict on a task. Its indices are those in which the candidates were added."""
    said = verdict.WhichOneof("verdict") or ""
    if said == "skip":
        if not 1 <= len(verdict.skip.reason) <= MOST_REASON_CHARACTERS or verdict.skip.reason.isspace():
            yield "verdict.skip.reason", f"not 1 to {MOST_REASON_CHARACTERS} characters"
        return
    if NEEDED_KINDS.get(said) not in task.kinds:
        yield f"verdict.{said}", "not a kind of answer that this task takes"
        return
    graded = [rating.response for rating in verdict.ratings.ratings]
    if said == "ratings" and not graded:
        yield "verdict.ratings", "empty"
    if len(set(graded)) < len(graded):
        yield "verdict.ratings", "grades a candidate twice"
    for signal in signals_of(task, verdict):
        for field, problem in signal_problems(signal, texts_of(task)):
            yield f"verdict.{field}", problem


def in_added_order(verdict: labelling_pb2.Verdict, order: Sequence[int]) -> labelling_pb2.Verdict:
    """Return a verdict whose indices count the candidates as they were added, not as they were shown in ``order``.

    An index of no candidate stays as far out of range as it was.
    """
    return _reindexed(verdict, lambda shown: order[shown] if 0 <= shown < len(order) else shown)


def in_shown_order(verdict: labelling_pb2.Verdict, order: Sequence[int]) -> labelling_pb2.Verdict:
    """Return a verdict whose indices count the candidates as they were shown in ``order``, not as they were added."""
    places = {added: shown for shown, added in enumerate(order)}
    return _reindexed(verdict, places.__getitem__)


def signals_of(task: labelling_pb2.NewTask, verdict: labelling_pb2.Verdict) -> list[feedback_pb2.FeedbackEvent]:
    """Return the signals that a verdict makes, one for each grade, and none for a skip. Nothing else in them is set."""
    match verdict.WhichOneof("verdict"):
        case "choice":
            return [feedback_pb2.FeedbackEvent(choice=verdict.choice)]
        case "tie":
            return [feedback_pb2.FeedbackEvent(tie=verdict.tie)]
        case "ranking":
            return [feedback_pb2.FeedbackEvent(ranking=verdict.ranking)]
        case "edit":
            return [feedback_pb2.FeedbackEvent(edit=verdict.edit)]
        case "ratings":
            minimum, maximum = scale_of(task)
            return [
                feedback_pb2.FeedbackEvent(
                    rating=feedback_pb2.Rating(
                        response=each.response, value=each.value, minimum=minimum, maximum=maximum
                    )
                )
                for each in verdict.ratings.ratings
            ]
    return []


def comparisons(candidates: int, verdict: labelling_pb2.Verdict) -> str:
    """Return what a verdict says about each pair of candidates: a character for each pair (i, j) with i < j, in order.

    ">" says that i is better, "<" that j is, "=" that they are equally good, and "?" that the verdict says nothing.
    """
    said: dict[tuple[int, int], str] = {}
    kind = verdict.WhichOneof("verdict")
    if kind == "choice":
        said[verdict.choice.chosen, verdict.choice.rejected] = ">"
    elif kind == "tie":
        said[verdict.tie.first, verdict.tie.second] = "="
    elif kind == "ranking":
        said.update(dict.fromkeys(combinations(verdict.ranking.order, 2), ">"))
    elif kind == "ratings":
        for one, other in combinations(verdict.ratings.ratings, 2):
            mark = "=" if one.value == other.value else ">" if one.value > other.value else "<"
            said[one.response, other.response] = mark
    turned = {">": "<", "<": ">", "=": "="}
    return "".join(
        said.get(pair) or turned.get(said.get((pair[1], pair[0]), ""), "?")
        for pair in combinations(range(candidates), 2)
    )


def compared(one: str, other: str) -> tuple[int, int]:
    """Return how many pairs two answers both compare, by `comparisons`, and of how many they say the same."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a != "?" and b != "?"]
    return len(both), sum(a == b for a, b in both)


def _reindexed(verdict: labelling_pb2.Verdict, index: Callable[[int], int]) -> labelling_pb2.Verdict:
    turned = labelling_pb2.Verdict()
    turned.CopyFrom(verdict)
    match verdict.WhichOneof("verdict"):
        case "choice":
            turned.choice.chosen = index(verdict.choice.chosen)
            turned.choice.rejected = index(verdict.choice.rejected)
        case "tie":
            turned.tie.first, turned.tie.second = index(verdict.tie.first), index(verdict.tie.second)
        case "ranking":
            turned.ranking.order[:] = [index(each) for each in verdict.ranking.order]
        case "ratings":
            for rating in turned.ratings.ratings:
                rating.response = index(rating.response)
        case "edit":
            turned.edit.response = index(verdict.edit.response)
    return turned
