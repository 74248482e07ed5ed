"""Held-out prompts on which a candidate is worse than the live version, for people who ask why it was refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.evaluation.evidence import Evidence, Readings
from rewardloop_trainer.reports.parts import Sample, Side

MOST = 5


def reward_examples(evidence: Evidence, candidate: Readings, live: Readings | None) -> tuple[Sample, ...]:
    """Return the choices that the candidate contradicts most, beside the live version if there is one.

    Args:
        evidence: What people said.
        candidate: What the candidate says of it.
        live: What the live version says; None: there is none.
    """
    counted = evidence.comparisons.targets == 1.0
    margins = np.where(np.isfinite(candidate.margins), candidate.margins, 0.0)
    before = np.zeros(len(margins)) if live is None else np.where(np.isfinite(live.margins), live.margins, 0.0)
    worse = margins - before
    found: list[Sample] = []
    for place in np.argsort(worse, kind="stable").tolist():
        if len(found) == MOST or worse[place] >= 0:
            break
        if not counted[place]:
            continue
        pair = evidence.pairs[place]
        note = f"the candidate scores the preferred answer {margins[place]:+.2f} against the other"
        if live is not None:
            note += f", the live version {before[place]:+.2f}"
        sides = (Side("people prefer", pair.chosen), Side("over", pair.rejected))
        found.append(Sample(conversation_text(pair.prompt), sides, marks=(note,), signal=pair.event_id))
    return tuple(found)


def policy_examples(
    prompts: Sequence[Prompt],
    said: Sequence[tuple[str, float | None]],
    before: Sequence[tuple[str, float | None]],
    shares: Sequence[float],
) -> tuple[Sample, ...]:
    """Return the prompts on which the live policy's answers win most clearly.

    Args:
        prompts: The held-out prompts, (n,).
        said: An answer of the candidate to each, with its score.
        before: An answer of the live policy to each, with its score.
        shares: The share of the pairs of answers to each that the candidate wins, by the judge that decides.
    """
    found = []
    for place in np.argsort(shares, kind="stable").tolist()[:MOST]:
        if shares[place] >= 0.5:
            break
        sides = [
            Side(title, text, {} if score is None else {"score": score})
            for title, (text, score) in (("candidate", said[place]), ("live version", before[place]))
        ]
        note = f"the candidate wins {shares[place]:.0%} of the pairs of answers"
        found.append(Sample(conversation_text(prompts[place]), sides, marks=(note,)))
    return tuple(found)
