"""The report of a reward model: each measurement as a section, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewardloop_trainer.assessment.checks import parts_to_judge
from rewardloop_trainer.assessment.measures import finite, measured, named, share_of
from rewardloop_trainer.assessment.reward_models.agreement import Ceiling, Choices, slices_of
from rewardloop_trainer.assessment.reward_models.benchmarks import Benchmark, Scored
from rewardloop_trainer.assessment.reward_models.over_optimisation import OverOptimisation
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.evaluation.evidence import AtRandom
from rewardloop_trainer.evaluation.likelihood import best_slope, calibration_error, reliability
from rewardloop_trainer.reports.parts import (
    Cell,
    Curve,
    Curves,
    Intervals,
    Measured,
    Paragraph,
    Part,
    Sample,
    Samples,
    Section,
    Side,
    Table,
)
from rewardloop_trainer.reward.evaluate import Floats, correctness

_LEAST_OF_SLICE = 20
_MOST_SAMPLES = 200


# Begins the names of figures that end in a slice's name.
OF_SLICE = "accuracy_in_"


@dataclass
class Findings:
    """Sections and figures that a command collects."""

    sections: list[Section] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, section: Section, figures: Mapping[str, float]) -> None:
        self.sections.append(section)
        self.figures |= finite(figures)


def agreement_section(
    choices: Choices, margins: Mapping[str, Floats], ceiling: Ceiling | None, auc: ClusteredMean
) -> tuple[Section, dict[str, float]]:
    """Say how often models and baselines agree with people.

    Args:
        choices: People's strict choices.
        margins: The margins of each model and baseline, (choices,); the first one is the model that is evaluated.
        ceiling: People's agreement with each other; None if no two judged the same pair.
        auc: How well the model tells liked answers from others, of thumbs and ratings.
    """
    names = list(margins)
    found = {name: choices.accuracy(margins[name]) for name in names}
    gains = {name: choices.gain(margins[names[0]], margins[name]) for name in names[1:]}
    shown: list[tuple[str, Measured]] = [(name, measured(found[name])) for name in names]
    if ceiling is not None:
        shown += [
            ("most others agree with a person", measured(ceiling.by_majority)),
            ("one person agrees with another", measured(ceiling.pairwise)),
        ]
    random = {name: choices.at_random(margins[name]) for name in names}
    rows: list[Sequence[Cell]] = [
        (
            name,
            measured(found[name]),
            measured(gains[name]) if name in gains else None,
            None if (at_random := random[name]) is None else measured(at_random.accuracy),
        )
        for name in names
    ]
    of = f"{len(choices):,} choices about {len(np.unique(choices.prompts)):,} prompts"
    people = len(np.unique(choices.people))
    how = (
        f"by {people:,} people; intervals are over prompts and people"
        if choices.has_people
        else ("by one person or unknown people; intervals are over prompts alone, and say nothing of other people")
    )
    parts: list[Part] = [
        Paragraph(f"{of}, {how}."),
        Intervals("agreement", "Agreement with people's choices", "accuracy", shown, reference=0.5),
        Table("agreement-table", ("", "accuracy", f"{names[0]} against it", "as if pairs were random"), rows),
        Paragraph(_of_random(random[names[0]], len(choices)), "note"),
    ]
    if ceiling is None:
        text = "No two people judged the same pair, so that it is not known how far people agree with each other."
        parts.append(Paragraph(text, "note"))
    if np.isfinite(auc.mean):
        parts.append(Paragraph(f"AUC of thumbs and ratings: {_said(auc)}."))
    figures = named("accuracy", found[names[0]]) | named("auc", auc)
    if (first := random[names[0]]) is not None:
        figures |= named("accuracy_of_random_pairs", first.accuracy) | {"random_pairs": first.effective}
    for name, gain in gains.items():
        figures |= named(f"accuracy_over_{_word(name)}", gain)
    if ceiling is not None:
        figures |= named("ceiling", ceiling.by_majority)
    return Section("agreement", "Agreement with people", parts), figures


def slices_section(choices: Choices, margins: Mapping[str, Floats]) -> tuple[Section, dict[str, float]]:
    """Say how often each model agrees with people in each slice, the small ones joined."""
    parts = {name: np.flatnonzero(mask) for name, mask in slices_of(choices).items()}
    names = list(margins)
    rows: list[Sequence[Cell]] = []
    shown: list[tuple[str, Measured]] = []
    figures: dict[str, float] = {}
    for name, places in parts_to_judge(parts, _LEAST_OF_SLICE).items():
        kept = np.zeros(len(choices), dtype=bool)
        kept[places] = True
        part = choices.where(kept)
        accuracies = [measured(part.accuracy(margins[model][kept])) for model in names]
        rows.append((name, len(part), *accuracies))
        shown.append((name, accuracies[0]))
        figures[f"{OF_SLICE}{_word(name)}"] = accuracies[0].value
    note = f"Slices of fewer than {_LEAST_OF_SLICE} choices are joined."
    table = Table("slices-table", ("slice", "choices", *names), rows, note=note)
    plot = Intervals("slices", f"Accuracy of {names[0]} by slice", "accuracy", shown, reference=0.5)
    return Section("slices", "By slice", [plot, table]), figures


def calibration_section(choices: Choices, margins: Mapping[str, Floats]) -> tuple[Section, dict[str, float]]:
    """Say whether a model is as often right as its margins claim."""
    name = next(iter(margins))
    rows: list[Sequence[Cell]] = []
    curves = []
    for model, values in margins.items():
        bins = reliability(values, choices.weights)
        curves.append(Curve(model, [each.confidence for each in bins], [each.accuracy for each in bins]))
        slope = best_slope(values, np.ones(len(values)), choices.weights)
        rows.append((model, calibration_error(values, choices.weights), slope))
    plot = Curves("reliability", "Reliability", "confidence, sigmoid of the margin", "accuracy", curves[:4], True)
    table = Table(
        "calibration-table",
        ("", "expected calibration error", "best slope"),
        rows,
        note="Ten bins of equal width. A slope below 1 means that the margins are too sure.",
    )
    figures = {
        "calibration_error": calibration_error(margins[name], choices.weights),
        "calibration_slope": best_slope(margins[name], np.ones(len(choices)), choices.weights),
    }
    return Section("calibration", "Calibration", [plot, table]), figures


def benchmark_section(
    results: Sequence[tuple[Benchmark, Mapping[str, Scored]]],
) -> tuple[Section, dict[str, float]]:
    """Say how models do on benchmarks and their subsets."""
    parts: list[Part] = []
    figures: dict[str, float] = {}
    for number, (benchmark, scored) in enumerate(results):
        names, clusters = list(scored), benchmark.clusters
        rows: list[Sequence[Cell]] = []
        first = scored[names[0]]
        everything = {"all": np.arange(len(benchmark.items)), **benchmark.subsets}
        for subset, places in everything.items():
            found = [measured(share_of(scored[name].right[places], clusters[places])) for name in names]
            rows.append((subset, len(places), *found))
        for style in first.styles:
            styled = [measured(share_of(scored[name].styles[style], clusters)) for name in names]
            rows.append((f"style: {style}", len(first.styles[style]), *styled))
        figures |= named(f"benchmark_{_word(benchmark.name)}", share_of(first.right, clusters))
        parts.append(Table(f"benchmark-{number}", ("subset", "items", *names), rows, benchmark.name))
    return Section("benchmarks", "Benchmarks", parts), figures


def over_optimisation_section(
    found: OverOptimisation | None, reward: str, judge: str
) -> tuple[Section, dict[str, float]]:
    """Show the judge's score against best-of-n and its KL."""
    if found is None:
        text = "No prompt has two answers that both models scored."
        return Section("over-optimisation", "Over-optimisation", [Paragraph(text, "note")]), {}
    sides = {reward: [p.reward for p in found.curve], judge: [p.judge for p in found.curve]}
    kl = [point.kl for point in found.curve]
    curves = [
        Curve(name, kl, [p.mean for p in points], [p.lower(0.025) for p in points], [p.upper(0.025) for p in points])
        for name, points in sides.items()
    ]
    label = "deviations above a random answer"
    rows: list[Sequence[Cell]] = [
        (point.n, point.kl, measured(point.reward), measured(point.judge)) for point in found.curve
    ]
    text = (
        f"By {judge}, the best choice is the best of {found.peak}; from there to the end it loses {_said(found.loss)}."
    )
    parts: list[Part] = [
        Paragraph(text, "bad" if found.is_shown else "plain"),
        Curves("best-of-n", "Best of n by KL", "KL to the policy, nats", label, curves),
        Table("best-of-n-table", ("n", "KL, nats", reward, judge), rows),
    ]
    return Section("over-optimisation", "Over-optimisation", parts), named("over_optimisation_loss", found.loss)


def choice_samples(choices: Choices, margins: Mapping[str, Floats], seed: int = 0) -> Section:
    """Show choices side by side, the ones on which two models differ most first.

    They differ by their margins, each divided by the root of the model's mean squared margin, because margins of
    different models have different scales.
    """
    names = list(margins)
    first = margins[names[0]]
    other = margins[names[1]] if len(names) > 1 else np.zeros(len(first))
    apart = np.abs(_scaled(first) - _scaled(other))
    order = np.argsort(-apart, kind="stable")[:_MOST_SAMPLES]
    samples = []
    for i in order:
        pair = choices.pairs[i]
        figures = {
            f"margin of {names[0]}": float(first[i]),
            "disagreement": float(apart[i]),
            "longer by": float(len(pair.chosen) - len(pair.rejected)),
        }
        right = ["right" if correctness(first[i : i + 1])[0] == 1 else "wrong"]
        marks = right + [f"{key}={value}" for key, value in sorted(pair.tags.items())]
        sides = [Side("preferred by people", pair.chosen), Side("rejected", pair.rejected)]
        samples.append(Sample(conversation_text(pair.prompt), sides, figures, marks))
    note = f"{len(samples):,} of {len(choices):,} choices"
    return Section("samples", "Samples", [Samples("choices", samples, note=note)])


def _scaled(margins: Floats) -> Floats:
    size = float(np.sqrt(np.mean(np.square(margins)))) if len(margins) else 0.0
    return margins / size if size > 0 else margins


def overfit_section(
    seen: ClusteredMean, unseen: ClusteredMean, by_tag: Mapping[str, ClusteredMean]
) -> tuple[Section, dict[str, float]]:
    """Compare the accuracy on signals that training saw with that on held-out ones, and known with unknown domains.

    Args:
        seen: Accuracy on training signals.
        unseen: Accuracy on held-out ones.
        by_tag: Accuracy on held-out signals whose tags occur in training ("known domains"), and on the others.
    """
    gap = ClusteredMean(
        seen.mean - unseen.mean, float(np.hypot(seen.error, unseen.error)), min(seen.clusters, unseen.clusters)
    )
    rows: list[Sequence[Cell]] = [
        ("training signals", measured(seen)),
        ("held-out signals", measured(unseen)),
        ("overfit gap", measured(gap)),
        *((name, measured(found)) for name, found in by_tag.items()),
    ]
    table = Table("generalisation-table", ("", "accuracy"), rows)
    figures = named("overfit_gap", gap)
    for name, found in by_tag.items():
        figures |= named(f"accuracy_in_{_word(name)}", found)
    return Section("generalisation", "Generalisation", [table]), figures


def _of_random(found: AtRandom | None, choices: int) -> str:
    """Say how much is known of pairs that are drawn at random."""
    if found is None:
        return (
            "No choice says with which probability its pair was shown, so that it is not known how often the model "
            "would be right about pairs that are drawn at random."
        )
    return (
        f"As if pairs were random: {found.choices:,} of the {choices:,} choices say with which probability their pair "
        f"was shown. Weighed to pairs that are drawn at random among the sampled answers, they tell as much as "
        f"{found.effective:,.0f} choices."
    )


def _said(mean: ClusteredMean) -> str:
    found = measured(mean)
    return f"{found.value:.3f} ({found.lower:.3f} to {found.upper:.3f})"


def _word(text: str) -> str:
    """The text as a part of a figure's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in text.lower()).strip("_")
