"""How far people are trusted in a round, by the signals that are kept of the crowd up to the round's last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import structlog

from rewardloop_trainer.annotators.crowd import Crowd, know_crowd
from rewardloop_trainer.annotators.crowd_bt import fold_of
from rewardloop_trainer.annotators.crowd_file import CROWD, CrowdFile
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.preferences import Pair, Record
from rewardloop_trainer.data.weights.trust import TRUST, Trust, weigh_people
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reward.linear_start.person_folds import LEAST_PAIRS, cross_fitted_margins
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart
from rewardloop_trainer.vocabulary import DETECTORS, PERCENTILES

log = structlog.get_logger()

AskModel: TypeAlias = Callable[[Trust], Mapping[str, float]]

# With more of the votes compared than this, people are known by each other, and no model is asked.
_ENOUGH_COMPARED = 0.5
_MODEL_PASSES = 2


def trust_of_round(
    ledger: Ledger, until: str, work_dir: Path, directory: Path, metrics: TrainerMetrics, ask_model: AskModel | None
) -> Trust:
    """Estimate how far people are trusted, once in a round; a round that goes on later finds it in its directory.

    Args:
        ledger: The ledger, of which the segments since the last round are read.
        until: The round's last place in it.
        work_dir: Where the file of the crowd is.
        directory: The round's own, where the estimate is kept.
        metrics: Shows what was found.
        ask_model: Says, given how people are trusted so far, what a model that learned from none of them expects of
            their choices; None: no model is asked.

    Raises:
        CorruptSegment: If a segment of the ledger cannot be read.
        Fenced: If another trainer leads.
        sqlite3.Error: If the file cannot be written.
    """
    kept = directory / TRUST
    if kept.exists():
        return Trust.from_json(kept.read_text())
    with CrowdFile(work_dir / CROWD) as file:
        file.take_in(ledger, until)
        crowd, gestures = know_people(file, ask_model), file.gestures()
    show_crowd(metrics, crowd, gestures)
    directory.mkdir(parents=True, exist_ok=True)
    writing = kept.with_suffix(".writing")
    writing.write_text(crowd.trust.to_json())
    writing.replace(kept)
    return crowd.trust


def know_people(file: CrowdFile, ask_model: AskModel | None = None) -> Crowd:
    """Return what is known of a crowd by its own votes and, if too few of these can be compared, by a model.

    Args:
        file: What people said. It keeps what the model says.
        ask_model: As for `trust_of_round`.
    """
    gestures = file.gestures()
    crowd = know_crowd(file.votes(), gestures)
    for _ in range(_MODEL_PASSES if ask_model and crowd.reliability.compared < _ENOUGH_COMPARED else 0):
        margins = ask_model(crowd.trust) if ask_model else {}
        if not margins:
            break
        file.note_margins(margins)
        crowd = know_crowd(file.votes(), gestures)
    return crowd


def asked_choices(records: Sequence[Record], trust: Trust, settings: RewardHyperparameters) -> list[Pair]:
    """Return the people's choices that a model is asked about: the newest ones; none if they are too few to learn from.

    Args:
        records: What people said.
        trust: How far they are trusted so far.
        settings: Of the linear fit, with the most choices that it learns from.
    """
    choices = [r for r in weigh_people(records, trust) if isinstance(r, Pair) and r.annotator and r.event_id]
    asked = choices[-settings.linear_start :] if settings.linear_start else []
    return asked if len(asked) >= LEAST_PAIRS else []


def say_of_people(
    start: RewardStart, records: Sequence[Record], trust: Trust, settings: RewardHyperparameters
) -> Mapping[str, float]:
    """Return what a linear fit on an untrained start, which learned from none of the people, says of their choices.

    Args:
        start: A start that has learned from nobody.
        records: What people said.
        trust: How far they are trusted so far.
        settings: Of the fit.

    Returns:
        Log odds of the choice, by signal; none if there are too few choices.
    """
    asked = asked_choices(records, trust, settings)
    return cross_fitted_margins(start.model, start.encoder, asked, settings, fold_of) if asked else {}


def show_crowd(metrics: TrainerMetrics, crowd: Crowd, gestures: Sequence[Gesture]) -> None:
    """Show what is known of the crowd in the metrics and the log."""
    counts = {detector: len({f.person for f in crowd.flags if f.detector == detector}) for detector in DETECTORS}
    for detector, count in counts.items():
        metrics.flagged_people.labels(detector=detector).set(count)
    metrics.bursts.set(len(crowd.bursts))
    metrics.hands.set(len(set(crowd.hands.values())))
    metrics.muted.set(crowd.muted)
    for name, value in zip(("estimate", "lower", "upper"), _alpha(crowd), strict=True):
        metrics.agreement.labels(figure=name).set(value)
    metrics.consistency.set(crowd.consistency.same)
    accuracies = [person.accuracy for person in crowd.reliability.people.values()]
    for percent in PERCENTILES if accuracies else ():
        metrics.reliability.labels(percent=percent).set(float(np.percentile(accuracies, float(percent))))
    for gauge, known in (
        (metrics.first_wins, [each.first_won for each in gestures if each.first_won is not None]),
        (metrics.longer_wins, [each.longer_won for each in gestures if each.longer_won is not None]),
    ):
        if known:
            gauge.set(sum(known) / len(known))
    log.info(
        "people",
        people=len(crowd.reliability.people),
        accuracy=round(crowd.reliability.crowd, 3),
        compared=round(crowd.reliability.compared, 3),
        muted=round(crowd.muted, 3),
        flagged={detector: count for detector, count in counts.items() if count},
    )


def _alpha(crowd: Crowd) -> tuple[float, float, float]:
    return crowd.agreement.alpha, crowd.agreement.lower, crowd.agreement.upper
