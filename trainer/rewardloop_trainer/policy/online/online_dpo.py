"""Online DPO: the best and the worst response to a prompt, as the reward model scores them, are a pair for DPO.

Source: Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback"; the best is paired with the worst
as in RLHF-Workflow (Dong et al. 2024). Pairs that people judged may be learned from in the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.dpo import pair_losses
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, OnlineDpoSettings


class OnlineDpo(Algorithm):
    """Pairs of equal texts or equal scores are dropped. The KL is no part of a reward: the loss has its own beta."""

    entry = ONLINE["online-dpo"]

    def __init__(self, settings: OnlineDpoSettings) -> None:
        self.settings: OnlineDpoSettings = settings

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
        of_judgement = torch.ones_like(samples.scores) if samples.weights is None else samples.weights
        tensors = {
            "is_token": samples.is_token[order],
            "logprobs": samples.logprobs[order],
            "reference": samples.reference[order].sum(1),
            "weight": of_judgement[order] / 2,
        }
        # A minibatch is divided by its pairs, not by their weights: one of light pairs alone would make them heavy.
        weight = torch.full((len(order),), 0.5, device=scores.device)
        figures = {"pairs_dropped": 1 - len(kept) / max(1, len(scores))}
        return Experience([samples.rows[i] for i in order], tensors, weight, 2, figures)

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        """The loss of each pair times its weight, half of it at each of its two rows."""
        policy, tokens = now.logprobs.sum(1).view(-1, 2), part["is_token"].sum(1).view(-1, 2)
        losses = pair_losses(policy, part["reference"].view(-1, 2), tokens, self.settings.loss)
        return losses.repeat_interleave(2) * part["weight"]
