"""The report of a policy: each measurement as a section, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rewardloop_trainer.assessment.measures import finite, measured, named
from rewardloop_trainer.assessment.policies.alignment_tax import TaskDifference, TaskResult
from rewardloop_trainer.assessment.policies.checks import failure_sample
from rewardloop_trainer.assessment.policies.head_to_head import Answers, HeadToHead
from rewardloop_trainer.assessment.policies.ladder import ELO_POINTS, Ladder
from rewardloop_trainer.assessment.refusals import is_refusal
from rewardloop_trainer.assessment.safety.rates import SuiteResult
from rewardloop_trainer.assessment.safety.red_team import RedTeam
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.evaluation.policy_gate import Fluency
from rewardloop_trainer.reports.parts import (
    Cell,
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

_MOST_SAMPLES = 200


def head_to_head_section(found: Sequence[HeadToHead], ours: str, theirs: str) -> tuple[Section, dict[str, float]]:
    """Say who wins by each judge, as the answers are and at like lengths."""
    rows: list[Sequence[Cell]] = []
    shown: list[tuple[str, Measured]] = []
    figures: dict[str, float] = {}
    for number, each in enumerate(found):
        controlled = Measured(each.controlled.win_rate, each.controlled.lower, each.controlled.upper)
        rows.append((each.judge, measured(each.win_rate), controlled, each.consistent, each.first_wins, each.unjudged))
        shown += [(each.judge, measured(each.win_rate)), (f"{each.judge}, at like lengths", controlled)]
        ending = f"_{number}" if number else ""
        figures |= named(f"win_rate{ending}", each.win_rate)
        figures |= finite(
            {
                f"length_controlled_win_rate{ending}": controlled.value,
                f"length_controlled_win_rate{ending}_lower": controlled.lower,
                f"length_controlled_win_rate{ending}_upper": controlled.upper,
            }
        )
    title = f"How often {ours} wins against {theirs}"
    columns = ("judge", "win rate", "at like lengths", "same winner in both orders", "first shown wins", "no verdict")
    parts: list[Part] = [
        Intervals("win-rates", title, "win rate", shown, reference=0.5),
        Table("win-rates-table", columns, rows, note="Ties count half. Intervals are over prompts."),
    ]
    return Section("head-to-head", "Head to head", parts), figures


def ladder_section(ladder: Ladder, judge: str) -> tuple[Section, dict[str, float]]:
    """Show all versions on one scale."""
    order = sorted(range(len(ladder.names)), key=lambda i: -ladder.strengths[i].value)
    shown = [(ladder.names[i], ladder.strengths[i]) for i in order]
    rows: list[Sequence[Cell]] = [
        (ladder.names[i], ladder.strengths[i], round(ladder.strengths[i].value * ELO_POINTS)) for i in order
    ]
    wins: list[Sequence[Cell]] = [(ladder.names[i], *(float(ladder.wins[i, j]) for j in order)) for i in order]
    label = f"strength above {ladder.names[0]}, nats"
    parts: list[Part] = [
        Paragraph(f"{ladder.comparisons:,} comparisons of every two versions, judged by {judge}."),
        Intervals("ladder", "Ladder", label, shown, reference=0.0),
        Table("ladder-table", ("version", label, "Elo points"), rows),
        Table("ladder-wins", ("wins against", *(ladder.names[i] for i in order)), wins, "Shares of wins"),
    ]
    figures = finite({f"strength_{i}": ladder.strengths[i].value for i in range(len(ladder.names))})
    return Section("ladder", "Ladder", parts), figures


def texts_section(
    figures: Mapping[str, Mapping[str, ClusteredMean]], fluency: Fluency | None
) -> tuple[Section, dict[str, float]]:
    """Say what each policy's answers look like; the first policy is the one that is evaluated."""
    names = list(figures)
    rows: list[Sequence[Cell]] = [
        (name, *(measured(figures[policy][name]) for policy in names)) for name in figures[names[0]]
    ]
    parts: list[Part] = [Table("texts-table", ("", *names), rows, note="Means over prompts.")]
    found: dict[str, float] = {}
    for name, value in figures[names[0]].items():
        found |= named(f"answers_{name.replace(' ', '_')}", value)
    if fluency is None:
        parts.append(Paragraph("No text that people approved is known, so that perplexity was not measured.", "note"))
    else:
        perplexities = [float(np.exp(fluency.candidate)), float(np.exp(fluency.live))][: len(names)]
        text = f"perplexity of texts that people approved: {', '.join(f'{p:.2f}' for p in perplexities)}"
        parts.append(Paragraph(f"{text} ({', '.join(names[:2])})."))
        found["perplexity"] = perplexities[0]
    return Section("answers", "Answers", parts), finite(found)


def tasks_section(
    results: Mapping[str, Mapping[str, TaskResult]], differences: Sequence[TaskDifference]
) -> tuple[Section, dict[str, float]]:
    """Say how policies do on the tasks of lm-eval."""
    names = list(results)
    rows: list[Sequence[Cell]] = []
    figures: dict[str, float] = {}
    changes = {each.name: measured(each.difference) for each in differences}
    for task, first in results[names[0]].items():
        for figure, value in first.figures.items():
            decides = figure.partition(",")[0] == first.deciding
            others = [results[name][task].figures.get(figure) for name in names[1:] if task in results[name]]
            rows.append((task, figure, value, *others, changes.get(task) if decides else None))
            figures[f"task_{task}_{figure.partition(',')[0]}"] = value
    note = "Differences are paired by document."
    table = Table("tasks-table", ("task", "figure", *names, "difference"), rows, note=note)
    return Section("tasks", "Tasks of lm-eval", [table]), finite(figures)


def safety_section(
    suite: str, results: Mapping[str, SuiteResult], rater: str, number: int
) -> tuple[Section, dict[str, float]]:
    """Say how often policies fail a suite, by category and language."""
    names = list(results)
    first = results[names[0]]
    rows: list[Sequence[Cell]] = []
    for part, places in {"all": np.arange(len(first.prompts)), **first.parts}.items():
        rates = [measured(results[name].rate(places)) for name in names]
        rise = measured(first.increase(results[names[1]], places)) if len(names) > 1 else None
        rows.append((part, len(places), *rates, rise))
    parts: list[Part] = [Paragraph(f"Failing answers, by {rater} and by phrases of refusal.")]
    if first.unrated:
        parts.append(Paragraph(f"{first.unrated} prompts could not be rated.", "bad"))
    parts.append(Table(f"safety-{number}-table", ("", "prompts", *names, "rise"), rows))
    if first.failures:
        other = results[names[1]] if len(names) > 1 else None
        samples = [failure_sample(each, other) for each in first.failures[:_MOST_SAMPLES]]
        note = f"{len(samples):,} of {len(first.failures):,} failing answers of {names[0]}"
        parts.append(Samples(f"safety-{number}-failures", samples, "Failing answers", note))
    ending = f"_{number}" if number else ""
    return Section(f"safety-{number}", f"Safety: {suite}", parts), named(f"safety_failures{ending}", first.rate())


def red_team_section(found: RedTeam) -> tuple[Section, dict[str, float]]:
    """Show what attacks found."""
    share = len(found.hits) / found.tried if found.tried else float("nan")
    rows: list[Sequence[Cell]] = [
        (kind, made, worked, worked / made) for kind, (made, worked) in sorted(found.by_kind.items())
    ]
    text = f"{len(found.hits):,} of {found.tried:,} attacks worked; the policy gave {found.calls:,} answers."
    parts: list[Part] = [
        Paragraph(text, "bad" if found.hits else "good"),
        Table("red-team-table", ("made by", "attacks", "worked", "share"), rows),
    ]
    if found.unrated:
        parts.append(Paragraph(f"{found.unrated} answers could not be rated.", "note"))
    if found.paraphrases or found.is_paraphrase_spent:
        told = f"A model was asked for {found.paraphrases:,} paraphrases"
        spent = ", until its budget of the day was spent." if found.is_paraphrase_spent else "."
        parts.append(Paragraph(told + spent, "note"))
    samples = [
        Sample(
            conversation_text(hit.prompt),
            [Side("answer", hit.answer, {"unsafe": hit.unsafe})],
            {"unsafe": hit.unsafe},
            [hit.attack.goal.category, hit.attack.goal.language, " + ".join(hit.attack.made_by)],
        )
        for hit in found.hits[:_MOST_SAMPLES]
    ]
    if samples:
        parts.append(Samples("red-team-hits", samples, "Attacks that worked"))
    figures = {"red_team_share": share, "red_team_hits": len(found.hits), "red_team_paraphrases": found.paraphrases}
    return Section("red-team", "Red team", parts), finite(figures)


def answer_samples(prompts: Sequence[Prompt], ours: Answers, theirs: Answers, found: Sequence[HeadToHead]) -> Section:
    """Show the first answer of both policies to each prompt, side by side."""
    samples = []
    for i, prompt in enumerate(prompts):
        a, b = ours.texts[i][0], theirs.texts[i][0]
        figures = {f"wins by {each.judge}": float(each.shares[i]) for each in found}
        if len(found) > 1:
            shares = [float(each.shares[i]) for each in found]
            figures["disagreement of judges"] = max(shares) - min(shares)
        figures["length change"] = float(ours.lengths[i][0] - theirs.lengths[i][0])
        marks = [f"{side.name} refused" for side, text in ((ours, a), (theirs, b)) if is_refusal(text)]
        samples.append(Sample(conversation_text(prompt), [Side(ours.name, a), Side(theirs.name, b)], figures, marks))
    order = sorted(range(len(samples)), key=lambda i: -abs(samples[i].figures["length change"]))
    if found:
        order = sorted(range(len(samples)), key=lambda i: _from_lost(float(found[0].shares[i])))
    shown = [samples[i] for i in order[:_MOST_SAMPLES]]
    note = f"{len(shown):,} of {len(samples):,} prompts, the first answer of each policy"
    return Section("samples", "Samples", [Samples("answers", shown, note=note)])


def generalisation_section(
    by_domain: Mapping[str, ClusteredMean], perplexities: tuple[float, float] | None
) -> tuple[Section, dict[str, float]]:
    """Compare win rates on domains that training knows with those on others, and texts it saw with held-out ones.

    Args:
        by_domain: The win rate on prompts of known and of unknown domains.
        perplexities: Of approved texts of training and of held-out ones, in nats a token; None if they are not known.
    """
    rows: list[Sequence[Cell]] = [(name, measured(found)) for name, found in by_domain.items()]
    figures: dict[str, float] = {}
    for name, found in by_domain.items():
        figures |= named(f"win_rate_on_{name.replace(' ', '_')}", found)
    parts: list[Part] = [Table("domains-table", ("prompts of", "win rate"), rows)] if rows else []
    if perplexities is not None:
        gap = perplexities[1] - perplexities[0]
        text = (
            f"Approved texts cost {perplexities[0]:.3f} nats a token in training and {perplexities[1]:.3f} held out: "
        )
        parts.append(Paragraph(f"{text}an overfit gap of {gap:.3f}."))
        figures["overfit_gap_nats"] = gap
    if not parts:
        text = "Without training data (--train) it is not known which domains training saw."
        parts = [Paragraph(text, "note")]
    return Section("generalisation", "Generalisation", parts), finite(figures)


def _from_lost(share: float) -> float:
    """Orders samples from those that the first policy loses."""
    return float("inf") if np.isnan(share) else share
