"""Online DPO: the best and the worst of a prompt's answers, as the reward model has it, are a pair for DPO.

Guo et al. 2024 (direct alignment from AI feedback); best against worst as in RLHF-Workflow (Dong et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses import dpo
from rewardloop_trainer.policy.online.experience import Experience, Now, Samples
from rewardloop_trainer.policy.settings import DpoSettings


class OnlineDpo:
    """Pairs with equal texts or scores are dropped. The strength of the reference is DPO's own beta."""

    has_critic = False

    def __init__(self, settings: DpoSettings) -> None:
        self._settings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        scores, k = samples.grouped_scores, samples.responses
        first = torch.arange(len(scores), device=scores.device) * k
        pairs = torch.stack([first + scores.argmax(1), first + scores.argmin(1)], 1)
        kept = [
            (better, worse)
            for better, worse in pairs.tolist()
            if samples.texts[better] != samples.texts[worse] and samples.scores[better] > samples.scores[worse]
        ]
        order = [index for pair in kept for index in pair]
        tensors = {
            "is_token": samples.is_token[order],
            "logprobs": samples.logprobs[order],
            "reference": samples.reference[order].sum(1),
        }
        weight = torch.full((len(order),), 0.5, device=scores.device)
        figures = {"pairs_dropped": 1 - len(kept) / max(1, len(scores))}
        return Experience([samples.rows[i] for i in order], tensors, weight, 2, figures)

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        """Each pair's loss, half of it at each of its rows."""
        settings = self._settings
        sums, tokens = now.logprobs.sum(1).view(-1, 2), part["is_token"].sum(1).view(-1, 2)
        ratio = sums - part["reference"].view(-1, 2)
        if settings.loss == "ipo" or settings.length_normalised:
            ratio = ratio / tokens
        losses = dpo.LOSSES[settings.loss](ratio[:, 0] - ratio[:, 1], settings.beta, settings.label_smoothing)
        losses = losses - settings.sft_weight * sums[:, 0] / tokens[:, 0]
        return losses.repeat_interleave(2) / 2
