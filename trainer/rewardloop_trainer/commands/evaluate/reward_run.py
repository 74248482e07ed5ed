"""Measures a reward model: agreement, slices, calibration, benchmarks, over-optimisation, generalisation, samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardloop.formats.store import VersionNotFound
from rewardloop_trainer.assessment.checks import Check
from rewardloop_trainer.assessment.loaded_model import LoadedReward
from rewardloop_trainer.assessment.policies.contender import read_answers
from rewardloop_trainer.assessment.reward_models.agreement import (
    Choices,
    human_ceiling,
    length_margins,
    strict_margins,
    word_margins,
)
from rewardloop_trainer.assessment.reward_models.benchmarks import read_benchmark, score_benchmark
from rewardloop_trainer.assessment.reward_models.checks import RatedVersion, check_reward, seen_by
from rewardloop_trainer.assessment.reward_models.over_optimisation import over_optimisation, scores_of
from rewardloop_trainer.assessment.reward_models.report import (
    Findings,
    agreement_section,
    benchmark_section,
    calibration_section,
    choice_samples,
    over_optimisation_section,
    overfit_section,
    slices_section,
)
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.commands.evaluate.loaded import (
    NothingToEvaluate,
    heldout_records,
    reward_of,
    store_of,
    trained_records,
)
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.data.preferences import Pair, Record, pairs_of
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, evidence_of
from rewardloop_trainer.evaluation.gate_anchor import GateAnchor
from rewardloop_trainer.evaluation.reward_gate import agreement
from rewardloop_trainer.reports.parts import Cell
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.reward.settings import RewardChecks

_LENGTH, _WORDS = "the longer answer", "bag of words"


def evaluate_reward(
    settings: EvaluateSettings, found: Findings, stages: Stages
) -> tuple[str, dict[str, Cell], list[Check]]:
    """Measure a reward model.

    Returns:
        Its name, what was measured and how, and the outcomes of the checks.

    Raises:
        NothingToEvaluate: If no choice was held out.
        StoreError, UnusableBase, UnreadableFile, UnusableBenchmark: If a model or a file cannot be read.
    """
    stages("loading models")
    models = _models(settings)
    first = models[0]
    stages("reading held-out signals")
    evidence = evidence_of(heldout_records(settings, first.encoder))
    choices = Choices.of(evidence)
    if not len(choices):
        raise NothingToEvaluate("nothing to evaluate on: nobody preferred one answer to another in the held-out part")
    readings: dict[str, Readings] = {}
    for model in models:
        stages(f"{model.name}: {len(evidence.pairs):,} pairs and {len(evidence.graded):,} grades")
        readings[model.name] = model.read(evidence)
    margins = {name: strict_margins(evidence, each) for name, each in readings.items()}
    stages("reading the signals of training")
    train = trained_records(settings, first.encoder)
    stages("baselines")
    baselines = {_LENGTH: length_margins(choices), _WORDS: word_margins(choices, pairs_of(train), settings.seed)}
    auc = agreement(evidence, readings[first.name])["AUC of held-out thumbs and ratings"]
    found.add(*agreement_section(choices, margins | baselines, human_ceiling(choices), auc))
    found.add(*slices_section(choices, margins | baselines))
    found.add(*calibration_section(choices, margins))
    _add_benchmarks(settings, models, found, stages)
    _add_over_optimisation(settings, first, found, stages)
    if train:
        stages("training signals, for the overfit gap")
        found.add(*overfit_section(*_generalisation(first, choices, margins[first.name], train)))
    found.sections.append(choice_samples(choices, margins | baselines, settings.seed))
    checks = _checks(settings, evidence, models, readings, train, stages)
    facts: dict[str, Cell] = {
        "held-out choices": len(choices),
        "held-out prompts": len(np.unique(choices.prompts)),
        "compared with": ", ".join(model.name for model in models[1:]) or "no other version",
    }
    if first.has_new_heads:
        facts["warning"] = "its score heads are new and random"
    return first.name, facts, checks


def _models(settings: EvaluateSettings) -> list[LoadedReward]:
    """The model, what it is compared with, the best version that its line knows, and those that are named."""
    first = reward_of(settings, settings.version or settings.directory, settings.model)
    names = [settings.against or first.parent]
    if settings.version:
        store = store_of(settings)
        anchor = GateAnchor.read(store.fetch(settings.model, settings.version), settings.version)
        names += [anchor.best] if anchor else []
        listed = map(str, store.versions(settings.model)) if settings.versions == ("all",) else settings.versions
        names += listed
    else:
        names += settings.versions
    models = [first]
    for name in dict.fromkeys(name for name in names if name and name != settings.version):
        try:
            models.append(reward_of(settings, name, settings.model))
        except VersionNotFound:
            if name == settings.against or name in settings.versions:
                raise
    return models


def _add_benchmarks(
    settings: EvaluateSettings, models: Sequence[LoadedReward], found: Findings, stages: Stages
) -> None:
    results = []
    for path in settings.benchmarks:
        benchmark = read_benchmark(path)
        stages(f"benchmark {benchmark.name}: {len(benchmark.items):,} items")
        results.append((benchmark, {each.name: score_benchmark(benchmark, each.judge.score) for each in models[:3]}))
    if results:
        found.add(*benchmark_section(results))


def _add_over_optimisation(settings: EvaluateSettings, first: LoadedReward, found: Findings, stages: Stages) -> None:
    if settings.answers is None:
        return
    if not settings.judges:
        raise NothingToEvaluate("the curve of over-optimisation needs another judge: --judges names a reward model")
    judge = reward_of(settings, settings.judges[0])
    said = read_answers(settings.answers)
    stages(f"over-optimisation: answers to {min(len(said.prompts), settings.prompts):,} prompts")
    ours, theirs = (scores_of(model.judge.score, said, settings.prompts) for model in (first, judge))
    found.add(*over_optimisation_section(over_optimisation(ours, theirs), first.name, judge.name))


def _generalisation(
    first: LoadedReward, choices: Choices, margins: Floats, train: Sequence[Record]
) -> tuple[ClusteredMean, ClusteredMean, dict[str, ClusteredMean]]:
    """The accuracy on training signals, on held-out ones, and on those of known and of unknown domains."""
    evidence = evidence_of(train)
    seen = Choices.of(evidence)
    on_seen = seen.accuracy(strict_margins(evidence, first.read(evidence)))
    tags = {tag for pair in pairs_of(train) for tag in _tags(pair)}
    is_known = np.array([_tags(pair) <= tags for pair in choices.pairs], dtype=bool)
    by_domain: dict[str, ClusteredMean] = {
        name: choices.where(mask).accuracy(margins[mask])
        for name, mask in (("known domains", is_known), ("unknown domains", ~is_known))
        if mask.any() and not mask.all()
    }
    return on_seen, choices.accuracy(margins), by_domain


def _tags(pair: Pair) -> set[tuple[str, str]]:
    return {(key, value) for key, value in pair.tags.items() if key != "file"}


def _checks(
    settings: EvaluateSettings,
    evidence: Evidence,
    models: Sequence[LoadedReward],
    readings: dict[str, Readings],
    train: Sequence[Record],
    stages: Stages,
) -> list[Check]:
    wanted = RewardChecks.model_validate(
        {
            "benchmark": settings.benchmark_margin,
            "benchmarks": settings.benchmarks if settings.benchmark_margin is not None else (),
            "slice": settings.slice_margin,
            "length": settings.least_over_length,
            "calibration": settings.most_calibration_error,
            "overfit": settings.most_overfit,
            "over_optimisation": settings.most_over_optimisation,
            "answers": settings.answers if settings.most_over_optimisation is not None else None,
            "judge": settings.judges[0] if settings.most_over_optimisation is not None else "",
        }
    )
    if not wanted.are_any:
        return []
    stages("checks")
    sides = [RatedVersion(readings[model.name], model.judge.score) for model in models[:2]]
    live = sides[1] if settings.against else None
    seen = seen_by(models[0].judge, train) if settings.most_overfit is not None else None
    judge = reward_of(settings, wanted.judge).judge.score if wanted.judge else None
    return check_reward(evidence, sides[0], live, wanted, seen, judge)
