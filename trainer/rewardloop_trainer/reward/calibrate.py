"""Keeps scores comparable across versions: each is fitted on one fixed set of anchors.

A fresh reward model moves and stretches its logits; a caller's threshold must not follow. So every version's affine
map puts the same (prompt, response) pairs at mean 0 and standard deviation 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.reward.examples import logits_of, responses_of
from rewardloop_trainer.reward.model import RewardModel

ANCHORS = "anchors.jsonl"
MAX_ANCHORS = 256


class CorruptAnchors(ValueError):
    """The anchor file cannot be read. Scores would lose their meaning with another set, so it is not replaced."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A pair whose score fixes the scale."""

    prompt: Prompt
    response: str


def fixed_anchors(work_dir: Path, records: Iterable[Record]) -> tuple[Anchor, ...]:
    """The anchors in ``work_dir``; where there are none yet, chosen from the records and stored for good.

    A starter ships its set as the same file. Nothing is stored while there are no records.
    Raises `CorruptAnchors`.
    """
    path = work_dir / ANCHORS
    if path.exists():
        return read_anchors(path)
    anchors = choose_anchors(records)
    if anchors:
        write_anchors(path, anchors)
    return anchors


def choose_anchors(records: Iterable[Record], limit: int = MAX_ANCHORS) -> tuple[Anchor, ...]:
    """At most ``limit`` distinct pairs, spread over the prompts; fixed by the set of records, not their order."""
    by_prompt: dict[Prompt, set[str]] = {}
    for record in records:
        by_prompt.setdefault(record.prompt, set()).update(responses_of(record))
    ranked = [
        (place, _hash(prompt, response), Anchor(prompt, response))
        for prompt, responses in by_prompt.items()
        for place, response in enumerate(sorted(responses, key=lambda r: _hash(prompt, r)))
    ]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(anchor for _, _, anchor in ranked[:limit])


def read_anchors(path: Path) -> tuple[Anchor, ...]:
    """Rows ``{"prompt": [{"role", "content"}, ...], "response"}``. Raises `CorruptAnchors`."""
    anchors = []
    try:
        # Not splitlines: JSON leaves U+2028 and its like in texts as they are.
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            row = json.loads(line)
            prompt = tuple(Turn(str(t["role"]), str(t["content"])) for t in row["prompt"])
            anchors.append(Anchor(prompt, str(row["response"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptAnchors(f"{path}, row {len(anchors) + 1}: {error}") from error
    return tuple(anchors)


def write_anchors(path: Path, anchors: Iterable[Anchor]) -> None:
    """Write the file whole: a killed process leaves the old one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".anchors-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for anchor in anchors:
            prompt = [{"role": t.role, "content": t.content} for t in anchor.prompt]
            file.write(json.dumps({"prompt": prompt, "response": anchor.response}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def anchor_logits(
    model: RewardModel, encoder: Encoder, anchors: Sequence[Anchor], length_slope: float = 0.0, token_budget: int = 4096
) -> npt.NDArray[np.float64]:
    """Head-mean logits of the anchors less their length's share, (anchors,)."""
    if not anchors:
        return np.zeros(0)
    sequences = [encoder.pair(encoder.prompt_ids(a.prompt), encoder.response_ids(a.response)) for a in anchors]
    model.eval()
    with torch.inference_mode():
        logits = logits_of(model, sequences, encoder.format.pad, token_budget)
    means: npt.NDArray[np.float64] = logits.double().mean(1).numpy()
    return means - length_slope * np.log([s.response_tokens for s in sequences])


def fit_length_slope(margins: npt.NDArray[np.float64], log_ratios: npt.NDArray[np.float64], control: float) -> float:
    """What a unit of log length is worth to the model, times ``control`` (0: keep it all, 1: take it all back).

    ``margins``, (pairs,): logit of chosen less that of rejected. ``log_ratios``, (pairs,): log of chosen's over
    rejected's response tokens. The least-squares slope through 0 of margins on log ratios: with control 1, margins
    and length are uncorrelated over the pairs.
    """
    power = float(log_ratios @ log_ratios)
    return control * float(margins @ log_ratios) / power if power > 0 else 0.0


def fit_calibration(logits: npt.NDArray[np.float64], length_slope: float = 0.0) -> Calibration:
    """The map that gives the anchors' values, (anchors,), mean 0 and standard deviation 1.

    ``logits`` are those of `anchor_logits` with this slope. Values that are all alike are only moved to 0; without
    any the map keeps their scale. The scale is positive. Raises ValueError on a logit that is not finite.
    """
    if logits.size == 0:
        return Calibration(length_slope=length_slope)
    if not np.isfinite(logits).all():
        raise ValueError("an anchor's logit is not finite")
    mean, deviation = float(logits.mean()), float(logits.std())
    if deviation <= 1e-6 * max(1.0, abs(mean)):  # float32 noise
        return Calibration(1.0, -mean, length_slope)
    return Calibration(1 / deviation, -mean / deviation, length_slope)


def _hash(prompt: Prompt, response: str) -> bytes:
    return hashlib.sha256(repr((prompt, response)).encode()).digest()
