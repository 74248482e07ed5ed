"""The figures of each optimizer step of a run, as `steps.jsonl` holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StepDone:
    """The progress of a run after one step.

    Attributes:
        step: Steps done so far, from 1.
        steps: Steps of the whole run.
        figures: Figures by name. Online: score and reward (means), kl (k1 estimate of the KL to the reference, nats per
            response), max_kl (what it may be at most), tokens (mean per response), no_end (share of responses without
            an end token), loss, update_kl (nats per token), clipped (share of tokens), beta, sampler_gap,
            sampler_gap_max and sampler_kl (differences between sampler and learner, nats per token), importance_capped
            (share of tokens), and what the algorithm adds.
        sampled_tokens: Tokens sampled in the step.
        seconds: Wall-clock time of the step, sampling included.
    """

    step: int
    steps: int
    figures: Mapping[str, float]
    sampled_tokens: int = 0
    seconds: float = field(default=0.0, compare=False)


_LAST_STEPS = 10
STEPS = "steps.jsonl"
TOKENS_PER_S = "tokens_per_s"


# The name and format of each figure in a step's line, in this order.
_SHOWN = {
    "score": ("score", "{:.3f}"),
    "reward": ("reward", "{:.3f}"),
    "kl": ("kl", "{:.2f}"),
    "tokens": ("tokens", "{:.1f}"),
    "entropy": ("entropy", "{:.2f}"),
    "loss": ("loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "margin": ("margin", "{:.3f}"),
    "update_kl": ("update kl", "{:.4f}"),
    "clipped": ("clipped", "{:.1%}"),
    "sampler_kl": ("sampler kl", "{:.4f}"),
    "gate_win_rate": ("win rate", "{:.3f}"),
    TOKENS_PER_S: ("tokens/s", "{:,.0f}"),
}


@dataclass(frozen=True, slots=True)
class StepRow:
    """One line of ``steps.jsonl``. ``time`` is in Unix seconds."""

    step: int
    steps: int
    time: float
    figures: Mapping[str, float]

    def line(self) -> str:
        """The step as a line for people."""
        width = len(str(self.steps))
        shown = [f"{n} {f.format(self.figures[key])}" for key, (n, f) in _SHOWN.items() if key in self.figures]
        return "  ".join([f"step {self.step:>{width}}/{self.steps}", *shown])

    def to_json(self) -> str:
        about = {"step": self.step, "steps": self.steps, "time": round(self.time, 3)}
        return json.dumps({**about, "figures": dict(self.figures)}) + "\n"


def last_means(steps: Sequence[StepRow | StepDone]) -> dict[str, float]:
    """Figures for a manifest: the number of steps, and each figure's mean over those of the last 10 that have it.

    A run whose start was all it learned has no step.
    """
    if not steps:
        return {"train_steps": 0.0}
    last = steps[-_LAST_STEPS:]
    names = dict.fromkeys(name for step in last for name in step.figures)
    means = {name: [step.figures[name] for step in last if name in step.figures] for name in names}
    return {"train_steps": float(last[-1].step), **{f"train_{n}": sum(v) / len(v) for n, v in means.items()}}


def read_steps(directory: Path) -> list[StepRow]:
    """Read ``steps.jsonl``, without a last line that a kill cut off. Raises ValueError for any other broken line."""
    rows = []
    try:
        lines = (directory / STEPS).read_text().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(StepRow(**json.loads(line)))
        except ValueError:
            if number < len(lines):
                raise
    return rows
