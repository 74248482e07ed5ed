"""The checks of a reward model's gate: benchmarks, slices, length and calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from rewardloop_trainer.assessment.checks import Check, no_worse, parts_to_judge, too_few
from rewardloop_trainer.assessment.measures import measured
from rewardloop_trainer.assessment.reward_models.agreement import Choices, length_margins, slices_of, strict_margins
from rewardloop_trainer.assessment.reward_models.benchmarks import Benchmark, Scored, read_benchmark, score_benchmark
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.clusters import Ints, clustered_mean
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, read_evidence
from rewardloop_trainer.evaluation.likelihood import calibration_error
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.reports.parts import Measured, Sample, Side
from rewardloop_trainer.reward.evaluate import Floats, correctness
from rewardloop_trainer.reward.settings import RewardChecks

_WHOLE = "all"


@dataclass(frozen=True, slots=True)
class RatedVersion:
    """A reward version that is checked: what it says of the held-out evidence, and how it scores other answers."""

    readings: Readings
    score: Scorer


def check_reward(
    evidence: Evidence,
    candidate: RatedVersion,
    live: RatedVersion | None,
    settings: RewardChecks,
    on_part: Callable[[str, int], None] = lambda what, done: None,
) -> list[Check]:
    """Make the checks that the settings name.

    Without a live version there is nothing to be worse than, and the checks against it are left out.

    Args:
        evidence: The held-out statements.
        candidate: The version that would go live.
        live: The live version; None if there is none.
        settings: The checks with their thresholds.
        on_part: Told what is being done, and how much of it is done.

    Raises:
        UnusableBenchmark, UnreadableFile: If a benchmark cannot be read.
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
    if live is not None:
        for path in settings.benchmarks:
            benchmark = read_benchmark(path)
            watch = partial(on_part, f"benchmark {benchmark.name}")
            ours, theirs = (score_benchmark(benchmark, each.score, watch) for each in (candidate, live))
            checks += _benchmark_checks(benchmark, ours, theirs, settings)
    return checks


def check_models(
    evidence: Evidence, candidate: PolicyJudge, live: PolicyJudge | None, settings: RewardChecks
) -> list[Check]:
    """Make the checks of models in this process. Arguments and exceptions as of `check_reward`."""
    sides = [
        None
        if side is None
        else RatedVersion(read_evidence(side.model, side.encoder, evidence, side.length), side.score)
        for side in (candidate, live)
    ]
    assert sides[0] is not None
    return check_reward(evidence, sides[0], sides[1], settings)


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
            Sample(
                conversation_text(part.pairs[i].prompt),
                [Side("preferred by people", part.pairs[i].chosen), Side("rejected", part.pairs[i].rejected)],
                {"candidate's margin": float(margins[kept][i]), "live margin": float(live[kept][i])},
                [f"{key}={value}" for key, value in sorted(part.pairs[i].tags.items())],
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
        change = clustered_mean(gains, np.ones(len(gains)), clusters[places])
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
