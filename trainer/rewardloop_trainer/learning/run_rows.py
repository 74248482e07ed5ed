"""The figures of each optimizer step of a run, as `steps.jsonl` holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StepDone:
    """After a step. ``figures``: score and reward (means), kl (k1 to the reference, nats an answer), tokens and
    no_end (a mean, a share), loss, update_kl (nats a token), clipped (a share), beta, and what the algorithm adds.
    ``seconds``: that the step took, with the sampling of ``sampled_tokens``."""

    step: int
    steps: int
    figures: Mapping[str, float]
    sampled_tokens: int = 0
    seconds: float = field(default=0.0, compare=False)


_LAST_STEPS = 10
STEPS = "steps.jsonl"
TOKENS_PER_S = "tokens_per_s"


# How a line shows each figure that is there, in this order.
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
    "gate_win_rate": ("win rate", "{:.3f}"),
    TOKENS_PER_S: ("tokens/s", "{:,.0f}"),
}


@dataclass(frozen=True, slots=True)
class StepRow:
    """One line of ``steps.jsonl``. ``time``: Unix seconds."""

    step: int
    steps: int
    time: float
    figures: Mapping[str, float]

    def line(self) -> str:
        """For a person."""
        width = len(str(self.steps))
        shown = [f"{n} {f.format(self.figures[key])}" for key, (n, f) in _SHOWN.items() if key in self.figures]
        return "  ".join([f"step {self.step:>{width}}/{self.steps}", *shown])

    def to_json(self) -> str:
        about = {"step": self.step, "steps": self.steps, "time": round(self.time, 3)}
        return json.dumps({**about, "figures": dict(self.figures)}) + "\n"


def last_means(steps: Sequence[StepRow | StepDone]) -> dict[str, float]:
    """For a manifest: how many steps were taken, and each figure's mean over the last 10 of them that have it."""
    last = steps[-_LAST_STEPS:]
    names = dict.fromkeys(name for step in last for name in step.figures)
    means = {name: [step.figures[name] for step in last if name in step.figures] for name in names}
    return {"train_steps": float(last[-1].step), **{f"train_{n}": sum(v) / len(v) for n, v in means.items()}}


def read_steps(directory: Path) -> list[StepRow]:
    """What ``steps.jsonl`` holds; a line that a kill cut off is left out."""
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
