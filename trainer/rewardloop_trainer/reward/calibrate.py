"""Keeps scores comparable across versions by fitting each version on one fixed set of anchors.

A newly trained reward model has logits of another level and scale, but a caller's threshold must keep its meaning. So
each version has an affine map under which the same (prompt, response) pairs have mean 0 and standard deviation 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoder, Turn
from rewardloop_data.rows import RowError
from rewardloop_data.source_file import SourceFile, UnreadableFile
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.reward.examples import logits_of, responses_of
from rewardloop_trainer.reward.model import RewardModel

ANCHORS = "anchors.jsonl"
MAX_ANCHORS = 256


class CorruptAnchors(ValueError):
    """Raised when the anchor file cannot be read. Replacing it would change the meaning of scores."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A prompt and response whose score fixes the scale."""

    prompt: Prompt
    response: str


def fixed_anchors(work_dir: Path, records: Iterable[Record]) -> tuple[Anchor, ...]:
    """The anchors in ``work_dir``. If there are none yet, they are chosen from the records and stored for good.

    A starter ships its anchors as the same file. Without records nothing is stored.

    Raises:
        CorruptAnchors: If the file cannot be read.
    """
    path = work_dir / ANCHORS
    if path.exists():
        return read_anchors(path)
    anchors = choose_anchors(records)
    if anchors:
        write_anchors(path, anchors)
    return anchors


def choose_anchors(records: Iterable[Record], limit: int = MAX_ANCHORS) -> tuple[Anchor, ...]:
    """Choose at most ``limit`` distinct anchors, spread over the prompts. The order of the records does not matter."""
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
    """Read rows ``{"prompt": [{"role", "content"}, ...], "response"}``. Raises `CorruptAnchors`."""
    anchors = []
    number = 0
    try:
        for line in SourceFile.of(path).lines():
            number = line.number
            row: Any = line.value()
            prompt = tuple(Turn(str(t["role"]), str(t["content"])) for t in row["prompt"])
            anchors.append(Anchor(prompt, str(row["response"])))
    except UnreadableFile as error:
        raise CorruptAnchors(str(error)) from error
    except (RowError, KeyError, TypeError) as error:
        raise CorruptAnchors(f"{path}, row {number}: {error}") from error
    return tuple(anchors)


def write_anchors(path: Path, anchors: Iterable[Anchor]) -> None:
    """Write the anchor file. A killed process leaves the old file or none, never a part."""
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
    """Head-mean logits of the anchors, without the share of length, (anchors,)."""
    if not anchors:
        return np.zeros(0)
    sequences = [encoder.pair(a.prompt, a.response) for a in anchors]
    model.eval()
    with torch.inference_mode():
        logits = logits_of(model, sequences, encoder.format.pad, token_budget)
    means: npt.NDArray[np.float64] = logits.double().mean(1).numpy()
    return means - length_slope * np.log([s.response_tokens for s in sequences])


def fit_length_slope(margins: npt.NDArray[np.float64], log_ratios: npt.NDArray[np.float64], control: float) -> float:
    """Fit how much a unit of log length is worth to the model, times ``control``.

    It is the least-squares slope through 0 of margins on log ratios. With a control of 1, what remains of the margins
    is orthogonal to length over the pairs.

    Args:
        margins: (pairs,), the chosen response's logit minus the rejected one's.
        log_ratios: (pairs,), the log of the chosen response's tokens over the rejected one's.
        control: Share of the dependence on length to remove, from 0 to 1.
    """
    power = float(log_ratios @ log_ratios)
    return control * float(margins @ log_ratios) / power if power > 0 else 0.0


def fit_calibration(logits: npt.NDArray[np.float64], length_slope: float = 0.0) -> Calibration:
    """Fit the map under which the anchors have mean 0 and standard deviation 1.

    If all logits are equal the map only shifts them to 0, and without any logit it changes nothing. The map's scale is
    positive.

    Args:
        logits: (anchors,), from `anchor_logits` with the same slope.
        length_slope: What the map takes off for each unit of log length.

    Raises:
        ValueError: If a logit is not finite.
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
