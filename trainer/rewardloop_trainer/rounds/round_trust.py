"""How far people are trusted in a round, by the signals that are kept of the crowd up to the round's last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import structlog

from rewardloop_trainer.annotators.crowd import Crowd, know_crowd
from rewardloop_trainer.annotators.crowd_bt import fold_of
from rewardloop_trainer.annotators.crowd_file import CROWD, CrowdFile
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.votes import Votes
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.preferences import Pair, Record
from rewardloop_trainer.data.weights.trust import TRUST, Trust, weigh_people
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reward.linear_start.person_folds import LEAST_PAIRS, cross_fitted_margins
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart
from rewardloop_trainer.rounds.bulletin.people import crowd_message
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.vocabulary import DETECTORS, PERCENTILES

log = structlog.get_logger()

AskModel: TypeAlias = Callable[[Trust], Mapping[str, float]]
ShowCrowd: TypeAlias = Callable[[Crowd, Votes, Sequence[Gesture]], None]

# With more of the votes compared than this, people are known by each other, and no model is asked.
_ENOUGH_COMPARED = 0.5
_MODEL_PASSES = 2


@dataclass(frozen=True, slots=True)
class TrustAsked:
    """What a round asks about people.

    Attributes:
        is_estimated: Whether people are weighed by what they say; else only mutes count.
        until: The round's last place in the ledger.
        ask_model: Says, given how people are trusted so far, what a model that learned from none of them expects of
            their choices; None: no model is asked.
        muted: Returns the people whom operators have muted.
    """

    is_estimated: bool
    until: str
    ask_model: AskModel | None
    muted: Callable[[], tuple[str, ...]]


def trust_of_round(ledger: Ledger, work_dir: Path, directory: Path, asked: TrustAsked, show: ShowCrowd) -> Trust:
    """Say how far people are trusted, once in a round; a round that goes on later finds it in its directory.

    Args:
        ledger: The ledger, of which the segments since the last round are read.
        work_dir: Where the file of the crowd is.
        directory: The round's own, where the estimate is kept.
        asked: What is asked.
        show: Shows what was found.

    Raises:
        CorruptSegment: If a segment of the ledger cannot be read.
        Fenced: If another trainer leads.
        redis.RedisError: If it cannot be told now who is muted.
        sqlite3.Error: If the file cannot be written.
    """
    kept = directory / TRUST
    if kept.exists():
        return Trust.from_json(kept.read_text())
    muted = asked.muted()
    trust = Trust()
    if asked.is_estimated:
        with CrowdFile(work_dir / CROWD) as file:
            file.take_in(ledger, asked.until)
            crowd = know_people(file, asked.ask_model)
            show(crowd, file.votes().votes, file.gestures())
        trust = crowd.trust
    trust = replace(trust, muted=muted)
    directory.mkdir(parents=True, exist_ok=True)
    writing = kept.with_suffix(".writing")
    writing.write_text(trust.to_json())
    writing.replace(kept)
    return trust


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


def show_crowd(
    metrics: TrainerMetrics, current: CurrentRound, crowd: Crowd, votes: Votes, gestures: Sequence[Gesture]
) -> None:
    """Show what is known of the crowd in the metrics, to operators and in the log."""
    current.board.knows(crowd_message(crowd, votes, gestures), current.state.started_at)
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
