"""One audit: everything that is measured of the signals, of the people and of a model, before it is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewardloop_trainer.annotators.agreement import (
    Agreement,
    Consistency,
    agreement_of,
    agreement_of_grades,
    self_consistency_of_grades,
)
from rewardloop_trainer.annotators.crowd import Crowd, know_crowd
from rewardloop_trainer.annotators.crowd_file import CrowdFile, CrowdVotes
from rewardloop_trainer.annotators.votes import Grades, grades_of
from rewardloop_trainer.audit.coverage import Covered, compare_coverage
from rewardloop_trainer.audit.judged import EVERYTHING, Judged, slices_in
from rewardloop_trainer.audit.leanings import Leaning, lean_to_first, lean_to_longer
from rewardloop_trainer.audit.model_figures import ModelFigures, measure_model, unseen_pairs
from rewardloop_trainer.audit.probes import Probed, measure_probe, probe_pairs
from rewardloop_trainer.clusters import Ints
from rewardloop_trainer.data.preferences import Pair, Prompt, TiedPair
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.reward.evaluate import Floats

# Gives a model's margins of pairs, (pairs,): the chosen response's logit less the rejected one's; NaN if it cannot read
# the conversation.
Margins = Callable[[Sequence[Pair]], Floats]

LEAST_SIGNALS = 20
# The kinds of signals that judge a response on its own.
_GRADED = ("thumb", "rating")


@dataclass(frozen=True, slots=True)
class KindAudit:
    """How far people agree with each other, and with themselves, in signals of one form.

    Attributes:
        name: "comparison" (choices, ties, rankings and edits), "thumb" or "rating".
        agreement: Krippendorff's alpha: nominal for comparisons and thumbs, interval for ratings.
        consistency: Of people who were asked the same again.
    """

    name: str
    agreement: Agreement
    consistency: Consistency


@dataclass(frozen=True, slots=True)
class SliceAudit:
    """What an audit says of a slice.

    Attributes:
        name: The slice.
        signals: Its signals.
        people: People who gave them.
        agreement: Krippendorff's alpha among its comparisons, or among its grades if it has nothing else.
        first: The leaning to the response that was seen first.
        longer: The leaning to the longer response, against the people outside the slice.
        model: Figures of the model; None without a model, or without comparisons that it has not learned from.
    """

    name: str
    signals: int
    people: int
    agreement: Agreement
    first: Leaning
    longer: Leaning
    model: ModelFigures | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        kinds: Agreement by the form of the signals, of the forms that there are.
        slices: Everything first, then each slice of at least `LEAST_SIGNALS` signals.
        small: Slices of fewer signals, with their numbers.
        crowd: What is known of the people.
        probes: What the model makes of form alone.
        coverage: The traffic's slices beside the signals'; empty if no traffic was given.
        signals: All signals.
        margins: The model's margins of the comparisons that it has not learned from.
    """

    kinds: tuple[KindAudit, ...]
    slices: tuple[SliceAudit, ...]
    small: Mapping[str, int]
    crowd: Crowd
    probes: tuple[Probed, ...]
    coverage: tuple[Covered, ...]
    signals: int
    margins: Floats = field(default_factory=lambda: np.zeros(0))


def make_audit(
    judged: Sequence[Judged],
    file: CrowdFile,
    margins_of: Margins | None = None,
    traffic: Mapping[str, int] | None = None,
    probed: int = 200,
) -> Audit:
    """Audit signals and a model.

    Args:
        judged: The signals.
        file: The same signals, as the file of a crowd has them.
        margins_of: Gives the margins of the model; None: no model is audited.
        traffic: As `traffic_of` counted it; None if it is unknown.
        probed: How many responses each probe changes.
    """
    votes = file.votes()
    pairs, of_pair = unseen_pairs(judged)
    margins = margins_of(pairs) if margins_of and pairs else np.zeros(0)
    if len(margins):  # those of conversations that the model's text format has no form for are left out
        read = np.flatnonzero(np.isfinite(margins)).tolist()
        pairs, of_pair, margins = [pairs[i] for i in read], [of_pair[i] for i in read], margins[read]
    by_slice: dict[str, list[Judged]] = {name: [] for name in slices_in(judged)}
    for each in judged:
        for name in each.slices:
            by_slice[name].append(each)
    places: dict[str, list[int]] = {name: [] for name in by_slice}
    for place, each in enumerate(of_pair):
        for name in each.slices:
            places[name].append(place)
    kept = [name for name, part in by_slice.items() if len(part) >= LEAST_SIGNALS or name == EVERYTHING]
    crowd = know_crowd(votes, file.gestures())
    return Audit(
        _kinds(judged, crowd),
        tuple(
            _audit_slice(name, by_slice[name], judged, votes, pairs, margins, np.array(places[name], dtype=np.int64))
            for name in kept
        ),
        {name: len(part) for name, part in by_slice.items() if name not in kept},
        crowd,
        _probe(judged, margins, margins_of, probed) if margins_of else (),
        tuple(compare_coverage(judged, traffic)) if traffic is not None else (),
        len(judged),
        margins,
    )


def _kinds(judged: Sequence[Judged], crowd: Crowd) -> tuple[KindAudit, ...]:
    """Comparisons as the crowd is known by them, and each kind of grade, if there are any."""
    found = []
    if any(each.pairs or isinstance(record, TiedPair) for each in judged for record in each.records):
        found.append(KindAudit("comparison", crowd.agreement, crowd.consistency))
    for kind in _GRADED:
        grades = _grades([each for each in judged if each.kind == kind])
        if len(grades):
            found.append(KindAudit(kind, agreement_of_grades(grades), self_consistency_of_grades(grades)))
    return tuple(found)


def _grades(judged: Sequence[Judged]) -> Grades:
    return grades_of(record for each in judged for record in each.records)


def _audit_slice(
    name: str,
    part: Sequence[Judged],
    judged: Sequence[Judged],
    votes: CrowdVotes,
    pairs: Sequence[Pair],
    margins: Floats,
    places: Ints,
) -> SliceAudit:
    inside = {each.gesture.key for each in part}
    others = [each for each in judged if each.gesture.key not in inside]
    of_slice = votes.votes.where(np.array([key in inside for key in votes.keys], dtype=bool))
    grades = _grades(part)
    model = None
    if len(margins) and len(places):
        model = measure_model([pairs[i] for i in places.tolist()], margins[places])
    return SliceAudit(
        name,
        len(part),
        len({each.gesture.person for each in part if each.gesture.person}),
        agreement_of(of_slice, resamples=500) if len(of_slice) else agreement_of_grades(grades, resamples=500),
        lean_to_first(part),
        lean_to_longer(part, others),
        model,
    )


def _probe(judged: Sequence[Judged], margins: Floats, margins_of: Margins, probed: int) -> tuple[Probed, ...]:
    """Change responses of distinct prompts, those that the model has not learned from first."""
    answers: dict[bytes, tuple[Prompt, str]] = {}
    for each in sorted(judged, key=lambda each: not each.is_unseen):
        for pair in each.pairs:
            answers.setdefault(prompt_key(pair.prompt), (pair.prompt, pair.chosen))
        if len(answers) >= probed:
            break
    deviation = float(margins.std()) if len(margins) > 1 else 1.0
    found = []
    for name, pairs in probe_pairs(list(answers.values())[:probed]).items():
        moved = margins_of(pairs) if pairs else np.zeros(0)
        read = np.flatnonzero(np.isfinite(moved)).tolist()
        if read:
            found.append(measure_probe(name, [pairs[i] for i in read], moved[read], deviation))
    return tuple(found)
