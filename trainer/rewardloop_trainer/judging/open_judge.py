"""Opens the judge that is wanted: a chat model, one that chooses, or a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rewardloop.formats.store import ModelStore
from rewardloop_reward.unusable_base import UnusableBase
from rewardloop_trainer.data.base_path import check_base_path
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.reward_judge import RewardJudge
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import NothingToTrain, RewardStart, start_from

_TOKEN_BUDGET = 8192


def reward_judge_of_base(base: str, tie_margin: float = 0.0) -> RewardJudge:
    """Return a judge by a Hugging Face reward model.

    Raises:
        UnusableBase: If it cannot be loaded, or has no trained head.
    """
    check_base_path(base)
    settings = RewardHyperparameters.model_validate({"base": base, "heads": 1})
    start = start_from(ModelStore("."), None, settings, 0)
    if start.model.has_new_heads:
        raise UnusableBase(f"{base}: has no trained head that scores, so it cannot judge")
    return _judge(f"reward:{Path(base).name}", start, 1.0, tie_margin)


def reward_judge_of_version(store: ModelStore, version: str, tie_margin: float = 0.0) -> RewardJudge:
    """Return a judge by a reward version of a store, by its calibrated scores.

    Raises:
        StoreError: If the store does not have it or its files were altered.
        UnusableBase: If it has no torch weights or does not load.
    """
    manifest = store.manifest("reward", version)
    try:
        start = start_from(store, version, RewardHyperparameters.model_validate({}), 0)
    except NothingToTrain as error:
        raise UnusableBase(str(error)) from error
    scale = manifest.calibration.scale if manifest.calibration else 1.0
    return _judge(f"reward:{version}@{manifest.digest[:12]}", start, scale, tie_margin)


def _judge(name: str, start: RewardStart, scale: float, tie_margin: float) -> RewardJudge:
    model, encoder = start.model.eval(), start.encoder

    @torch.inference_mode()
    def score(prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float | None]]:
        found: list[list[float | None]] = [[None] * len(group) for group in responses]
        places = [(i, j) for i, group in enumerate(responses) for j, text in enumerate(group) if text.strip()]
        if places:
            sequences = [encoder.pair(prompts[i], responses[i][j]) for i, j in places]
            logits = logits_of(model, sequences, encoder.format.pad, _TOKEN_BUDGET).double().mean(1) * scale
            for (i, j), logit in zip(places, logits.tolist(), strict=True):
                found[i][j] = logit
        return found

    return RewardJudge(name, score, tie_margin)
