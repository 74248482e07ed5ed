"""The update of one step: epochs over minibatches of its experience, each an optimizer step of all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from rewardloop_trainer.data.computing.autocast import computing_types
from rewardloop_trainer.data.token_batches import by_length, rate_scale
from rewardloop_trainer.learning.gradients import clip
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.losses.clipped import clipped_share, token_mean
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online_settings import OnlineSettings

# Keeps the random streams of different seeds apart.
SEED_PRIME = 1_000_003

# Before an update the probability ratio is 1 up to rounding: of sums in another order, and of logits, of which few are
# larger than this. A larger difference means that sampling and learning disagree about the probabilities.
_LEAST_TOLERANCE = 1e-2
_LARGE_LOGIT = 32.0


class Update:
    """Performs the updates of one run."""

    def __init__(
        self, learner: Learner, world: World, algorithm: Algorithm, settings: OnlineSettings, seed: int
    ) -> None:
        self._learner = learner
        self._world = world
        self._algorithm = algorithm
        self._settings = settings
        self._seed = seed
        self._ratio_tolerance = ratio_tolerance(computing_types(learner.policy))

    def run(
        self,
        experience: Experience,
        step: int,
        columns: int,
        temperature: float,
        stop_if_asked: Callable[[], None],
    ) -> dict[str, float]:
        """Run the epochs; end early if the policy has moved too far from the one that sampled.

        Args:
            experience: The rows to learn from.
            step: The step of the run, from 0; it determines the learning rates and the order of the minibatches.
            columns: Columns of the experience's tensors.
            temperature: What the logits are divided by.
            stop_if_asked: Called before each minibatch; may raise to stop.

        Returns:
            Means over the minibatches, and ``ended_early`` (1 or 0).

        Raises:
            ArithmeticError: If the first probability ratios are not 1, so that sampled and learned probabilities
                disagree; as `NonFiniteGradients`, if a minibatch's gradients are not finite.
        """
        settings = self._settings
        items = len(experience.rows) // experience.per_item
        per_minibatch = max(1, settings.minibatch // experience.per_item)
        seen: list[dict[str, float]] = []
        critic = self._learner.critic is not None and step < settings.critic.warmup_steps
        self._learner.set_rates(rate_scale(step, settings.steps, settings.warmup_share), critic_alone=critic)
        for epoch in range(settings.epochs):
            generator = torch.Generator().manual_seed((self._seed * SEED_PRIME + step) * 1_009 + epoch)
            order = torch.randperm(items, generator=generator).tolist()
            for start in range(0, items, per_minibatch):
                stop_if_asked()
                figures = self._minibatch(experience, order[start : start + per_minibatch], columns, temperature)
                if not seen and figures["off_ratio"] > self._ratio_tolerance:
                    raise ArithmeticError(f"before any update, a probability ratio is {figures['off_ratio']:.3g} off 1")
                seen.append(figures)
                if figures["update_kl"] > settings.max_update_kl:
                    return {**_means(seen), "ended_early": 1.0}
                figures["grad_norm"] = clip(self._learner.parameters, settings.clip_norm)
                self._learner.optimizer.step()
        return {**_means(seen), "ended_early": 0.0}

    def _minibatch(
        self, experience: Experience, items: Sequence[int], columns: int, temperature: float
    ) -> dict[str, float]:
        """Compute the gradients of one optimizer step, summed over the processes, and its figures."""
        self._learner.optimizer.zero_grad(set_to_none=True)
        width, device = experience.per_item, self._learner.policy.device
        total = sum(experience.weight[i * width : (i + 1) * width].sum().item() for i in items)
        # Loss; KL from the policy that sampled and clipped tokens, both times tokens; tokens.
        sums = torch.zeros(4, device=device)
        off = 0.0  # the largest |ratio - 1|
        mine = self._world.mine(items)
        longest = [width * max(len(experience.rows[i * width + j].ids) for j in range(width)) for i in mine]
        for group in by_length(longest, self._settings.micro_batch_tokens):
            rows = [mine[g] * width + j for g in group for j in range(width)]
            part = {name: tensor[rows] for name, tensor in experience.tensors.items()}
            now = self._learner.now([experience.rows[i] for i in rows], columns, temperature)
            loss = self._algorithm.loss(now, part).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                old, is_token = part["logprobs"], part["is_token"]
                tokens = is_token.sum()
                kl = token_mean(kl_estimate(old, now.logprobs, "k3"), is_token) * tokens
                settings = self._settings
                share = clipped_share(now.logprobs, old, is_token, settings.clip, settings.clip_above)
                sums += torch.stack([loss.detach(), kl, share * tokens, tokens.float()])
                ratio = ((now.logprobs - old).exp() - 1).abs()
                off = max(off, torch.where(is_token, ratio, 0.0).max().item())
        self._world.sum_gradients(self._learner.parameters)
        loss_sum, kl_sum, clipped, token_count = self._world.sum(sums).tolist()
        count, off = max(1.0, token_count), self._world.largest(off)
        return {"loss": loss_sum, "update_kl": kl_sum / count, "clipped": clipped / count, "off_ratio": off}


def ratio_tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """How far from 1 a probability ratio may be by rounding: 0.01 in float32, 0.03 in float16, 0.28 in bfloat16.

    Args:
        dtypes: The types in which the policy computes; the coarsest one counts. Quantised ones round no logits.
    """
    spacing = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=0.0)
    return max(_LEAST_TOLERANCE, math.expm1(_LARGE_LOGIT * spacing))


def _means(seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the minibatches that have it; 0 if none has it, as when nothing was learned from."""
    means = {}
    for name in ("loss", "update_kl", "clipped", "grad_norm"):
        values = [figures[name] for figures in seen if name in figures]
        means[name] = sum(values) / len(values) if values else 0.0
    return means
