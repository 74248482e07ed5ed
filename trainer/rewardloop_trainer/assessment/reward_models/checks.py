"""The checks of a reward model's gate: benchmarks, slices, length, calibration, overfit gap and over-optimisation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.assessment.checks import MOST_CASES, Check, no_worse, parts_to_judge, too_few
from rewardloop_trainer.assessment.loaded_model import load_reward
from rewardloop_trainer.assessment.measures import difference_of, measured
from rewardloop_trainer.assessment.policies.contender import AnswersInFile, read_answers
from rewardloop_trainer.assessment.reward_models.agreement import Choices, length_margins, slices_of, strict_margins
from rewardloop_trainer.assessment.reward_models.benchmarks import Benchmark, Scored, read_benchmark, score_benchmark
from rewardloop_trainer.assessment.reward_models.over_optimisation import over_optimisation, scores_of
from rewardloop_trainer.clusters import ClusteredMean, Ints
from rewardloop_trainer.data.preferences import Pair, Record
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, evidence_of, read_evidence
from rewardloop_trainer.evaluation.likelihood import calibration_error
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.reports.parts import Measured, Sample, Side
from rewardloop_trainer.reward.evaluate import Floats, correctness
from rewardloop_trainer.reward.settings import RewardChecks

_WHOLE = "all"
_MOST_ANSWERED = 500  # prompts that are read for over-optimisation
_MOST_SEEN = 2_000  # training records that are read for the overfit gap


@dataclass(frozen=True, slots=True)
class RatedVersion:
    """A reward version that is checked: what it says of the held-out evidence, and how it scores other answers."""

    readings: Readings
    score: Scorer


@dataclass(frozen=True, slots=True)
class Seen:
    """Choices that a version learned from, n, and its margins of them, (n,)."""

    choices: Choices
    margins: Floats


def check_reward(
    evidence: Evidence,
    candidate: RatedVersion,
    live: RatedVersion | None,
    settings: RewardChecks,
    seen: Seen | None = None,
    judge: Scorer | None = None,
    on_part: Callable[[str, int], None] = lambda what, done: None,
) -> list[Check]:
    """Make the checks that the settings name.

    Without a live version there is nothing to be worse than, and the checks against it are left out.

    Args:
        evidence: The held-out statements.
        candidate: The version that would go live.
        live: The live version; None if there is none.
        settings: The checks with their thresholds.
        seen: What the candidate says of its training signals; None: they are not known, and the check of the overfit
            gap does not pass.
        judge: Scores the answers of the check of over-optimisation; None: that check does not pass.
        on_part: Told what is being done, and how much of it is done.

    Raises:
        UnusableBenchmark, MissingAnswers, UnreadableFile: If a benchmark or the file of answers cannot be read.
    """
    checks: list[Check] = []
    choices = Choices.of(evidence)
    margins = strict_margins(evidence, candidate.readings)
    if settings.slice is not None and live is not None:
        checks += _slice_checks(choices, margins, strict_margins(evidence, live.readings), settings)
    if settings.length is not None:
        gain = choices.gain(margins, length_margins(choices))
        lower = gain.lower(settings.alpha)
        text = f"accuracy {gain.mean:+.3f} against preferring the longer answer, by its interval perhaps {lower:+.3f}"
        checks.append(Check("length", _WHOLE, lower > settings.length, text, measured(gain), lower - settings.length))
    if settings.calibration is not None:
        checks.append(_calibration_check(choices, margins, settings))
    if settings.overfit is not None:
        checks.append(_overfit_check(choices, margins, seen, settings, settings.overfit))
    if settings.answers is not None:
        checks.append(_over_optimisation_check(candidate.score, judge, settings, settings.answers))
    if live is not None:
        for path in settings.benchmarks:
            benchmark = read_benchmark(path)
            watch = partial(on_part, f"benchmark {benchmark.name}")
            ours, theirs = (score_benchmark(benchmark, each.score, watch) for each in (candidate, live))
            checks += _benchmark_checks(benchmark, ours, theirs, settings)
    return checks


def check_models(
    evidence: Evidence,
    candidate: PolicyJudge,
    live: PolicyJudge | None,
    settings: RewardChecks,
    store: ModelStore,
    train: Sequence[Record] = (),
) -> list[Check]:
    """Make the checks of models in this process. Other arguments and exceptions as of `check_reward`.

    Args:
        store: Of the reward model that judges over-optimisation.
        train: The candidate's training records, of which the overfit gap takes a random part.

    Raises:
        StoreError, UnusableBase, NothingToTrain: If that model cannot be loaded.
    """
    sides = [
        None
        if side is None
        else RatedVersion(read_evidence(side.model, side.encoder, evidence, side.length), side.score)
        for side in (candidate, live)
    ]
    assert sides[0] is not None
    seen = seen_by(candidate, train) if settings.overfit is not None else None
    judge = load_reward(store, settings.judge).judge.score if settings.judge else None
    return check_reward(evidence, sides[0], sides[1], settings, seen, judge)


def seen_by(model: PolicyJudge, train: Sequence[Record]) -> Seen:
    """Read a random part of a model's training records with it."""
    drawn = random.Random(0).sample(range(len(train)), min(len(train), _MOST_SEEN))
    evidence = evidence_of([train[i] for i in sorted(drawn)])
    readings = read_evidence(model.model, model.encoder, evidence, model.length)
    return Seen(Choices.of(evidence), strict_margins(evidence, readings))


def _slice_checks(choices: Choices, margins: Floats, live: Floats, settings: RewardChecks) -> list[Check]:
    assert settings.slice is not None
    parts = {name: np.flatnonzero(mask) for name, mask in slices_of(choices).items()}
    if len(choices) < settings.least:
        return [too_few("slice", _WHOLE, len(choices), settings.least)]
    checks = []
    for name, places in parts_to_judge(parts, settings.least).items():
        kept = np.zeros(len(choices), dtype=bool)
        kept[places] = True
        part = choices.where(kept)
        change = part.gain(margins[kept], live[kept])
        lost = np.flatnonzero(correctness(margins[kept]) < correctness(live[kept]))
        lost = lost[np.argsort((margins[kept] - live[kept])[lost], kind="stable")]
        cases = [
            _choice_sample(
                part.pairs[i],
                {"candidate's margin": float(margins[kept][i]), "live margin": float(live[kept][i])},
            )
            for i in lost
        ]
        checks.append(no_worse("slice", name, change, settings.slice, settings.alpha, cases))
    return checks


def _calibration_check(choices: Choices, margins: Floats, settings: RewardChecks) -> Check:
    assert settings.calibration is not None
    if len(choices) < settings.least:
        return too_few("calibration", _WHOLE, len(choices), settings.least)
    error = calibration_error(margins, choices.weights)
    text = f"expected calibration error {error:.3f}, at most {settings.calibration:g} is accepted"
    found = Measured(error, float("nan"), float("nan"))
    return Check("calibration", _WHOLE, error <= settings.calibration, text, found, settings.calibration - error)


def _overfit_check(choices: Choices, margins: Floats, seen: Seen | None, settings: RewardChecks, most: float) -> Check:
    fewest = min(len(choices), len(seen.choices) if seen else 0)
    if seen is None or fewest < settings.least:
        return too_few("overfit", _WHOLE, fewest, settings.least)
    of_seen, of_unseen = seen.choices.accuracy(seen.margins), choices.accuracy(margins)
    gap = ClusteredMean(
        of_seen.mean - of_unseen.mean,
        math.hypot(of_seen.error, of_unseen.error),
        min(of_seen.clusters, of_unseen.clusters),
    )
    upper = gap.upper(settings.alpha)
    text = f"accuracy {of_seen.mean:.3f} on training signals and {of_unseen.mean:.3f} on held-out ones, by the "
    text += f"interval perhaps {upper:+.3f} apart; less than {most:g} is accepted"
    wrong = np.flatnonzero(margins < 0)
    wrong = wrong[np.argsort(margins[wrong], kind="stable")][:MOST_CASES]
    cases = tuple(_choice_sample(choices.pairs[i], {"margin": float(margins[i])}) for i in wrong)
    return Check("overfit", _WHOLE, upper < most, text, measured(gap), most - upper, cases)


def _over_optimisation_check(score: Scorer, judge: Scorer | None, settings: RewardChecks, answers: Path) -> Check:
    assert settings.over_optimisation is not None
    if judge is None:
        return too_few("over_optimisation", "without a judge", 0, settings.least)
    said = read_answers(answers)
    ours, theirs = (scores_of(each, said, _MOST_ANSWERED) for each in (score, judge))
    found = over_optimisation(ours, theirs)
    if found is None or found.prompts < settings.least:
        return too_few("over_optimisation", answers.name, found.prompts if found else 0, settings.least)
    upper = found.loss.upper(settings.alpha)
    text = f"the judge's score falls by {found.loss.mean:.3f} deviations from the best of {found.peak} to the best of "
    text += f"{found.curve[-1].n}, by its interval perhaps {upper:.3f}; "
    text += f"less than {settings.over_optimisation:g} is accepted"
    cases = _over_optimised(said, ours, theirs) if upper >= settings.over_optimisation else ()
    room = settings.over_optimisation - upper
    return Check("over_optimisation", answers.name, room > 0, text, measured(found.loss), room, cases)


def _over_optimised(said: AnswersInFile, ours: Sequence[Floats], theirs: Sequence[Floats]) -> tuple[Sample, ...]:
    """The candidate's best answer beside the judge's, of the prompts in which the judge thinks least of the former."""
    found = []
    for prompt, reward, judged in zip(said.prompts, ours, theirs, strict=False):
        if np.isfinite(reward + judged).all() and (best := int(reward.argmax())) != (other := int(judged.argmax())):
            texts = said.texts[prompt_key(prompt)]
            sides = [
                Side(title, texts[i], {"candidate": float(reward[i]), "judge": float(judged[i])})
                for title, i in (("candidate's best", best), ("judge's best", other))
            ]
            lost = float(judged[other] - judged[best])
            found.append((lost, Sample(conversation_text(prompt), sides, {"judge's loss": lost}, [])))
    return tuple(sample for _, sample in sorted(found, key=lambda each: -each[0])[:MOST_CASES])


def _choice_sample(pair: Pair, figures: Mapping[str, float]) -> Sample:
    return Sample(
        conversation_text(pair.prompt),
        [Side("preferred by people", pair.chosen), Side("rejected", pair.rejected)],
        figures,
        [f"{key}={value}" for key, value in sorted(pair.tags.items())],
    )


def _benchmark_checks(benchmark: Benchmark, ours: Scored, theirs: Scored, settings: RewardChecks) -> list[Check]:
    assert settings.benchmark is not None
    count, clusters = len(benchmark.items), benchmark.clusters
    if count < settings.least:
        return [too_few("benchmark", benchmark.name, count, settings.least)]
    parts = {_WHOLE: np.arange(count)} | parts_to_judge(benchmark.subsets, settings.least)
    if len(benchmark.subsets) == 1:
        parts = {_WHOLE: np.arange(count)}
    checks = []
    for name, places in parts.items():
        gains = ours.right[places] - theirs.right[places]
        change = difference_of(gains, clusters[places])
        cases = _lost_items(benchmark, ours, theirs, places[gains < 0])
        label = benchmark.name if name == _WHOLE else f"{benchmark.name}, {name}"
        checks.append(no_worse("benchmark", label, change, settings.benchmark, settings.alpha, cases))
    return checks


def _lost_items(benchmark: Benchmark, ours: Scored, theirs: Scored, places: Ints) -> list[Sample]:
    found = []
    for place in places:
        item, new, old = benchmark.items[place], ours.scores[place], theirs.scores[place]
        labels = ["right"] * len(item.chosen) + ["wrong"] * len(item.rejected)
        sides = [
            Side(label, text, {"candidate": a, "live": b})
            for label, text, a, b in zip(labels, (*item.chosen, *item.rejected), new, old, strict=True)
        ]
        change = float(ours.right[place] - theirs.right[place])
        found.append(Sample(conversation_text(item.prompt), sides, {"change": change}, [item.subset]))
    return found
