"""What margin to give DPO for a preference of full strength: simulated judgements with strengths, several seeds.

    python tests/bench/margin_world.py --seeds 10

A policy that is linear in features chooses among a listed set of answers to each prompt. People choose between two of
its reference's answers by a hidden quality with noise (Bradley-Terry) and say how strong their preference is, from 0 to
1: the gap that they feel as a share of its 95% quantile, with ``--noise`` deviations of it by chance, in steps of a
quarter. The policy learns their choices by the trainer's own loss, to its minimum, with each margin and beta and
nothing else in the loss, and is judged by the quality of its answers to prompts that it did not see. Margins are
compared at the same distance from the reference: a margin moves a policy further, which a smaller beta does too.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.dpo import pair_losses
from rewardloop_trainer.policy.offline_settings import DpoSettings

MARGINS = (0.0, 0.5, 1.0, 2.0)
BETAS = (0.2, 0.4, 0.8, 1.6)
DISTANCE = 0.5  # nats of KL to the reference at which margins are compared
_FEATURES, _ANSWERS, _SEEN_PROMPTS, _UNSEEN_PROMPTS = 40, 12, 600, 400
_SHRINK = 1e-3
_STEPS = 40
_SPREAD = 1.0  # deviation of an answer's quality, in nats of a choice


@dataclass(frozen=True)
class World:
    """``features`` are (prompts, answers, d), ``quality`` (prompts, answers); the first prompts are learned from."""

    features: Tensor
    quality: Tensor
    chosen: Tensor
    rejected: Tensor
    prompt: Tensor
    strength: Tensor


def world(seed: int, pairs: int, noise: float) -> World:
    chance = np.random.default_rng(seed)
    prompts = _SEEN_PROMPTS + _UNSEEN_PROMPTS
    features = chance.normal(size=(prompts, _ANSWERS, _FEATURES)) / np.sqrt(_FEATURES)
    taste = chance.normal(size=_FEATURES)
    # Half of what people like cannot be read from the features.
    quality = _SPREAD * (features @ taste + chance.normal(size=(prompts, _ANSWERS))) / np.sqrt(2)
    prompt = chance.integers(0, _SEEN_PROMPTS, pairs)
    both = np.array([chance.choice(_ANSWERS, 2, replace=False) for _ in range(pairs)])
    # What a person feels is the gap with the logistic noise of a choice; its sign chooses, its size is the strength.
    felt = quality[prompt, both[:, 0]] - quality[prompt, both[:, 1]] + chance.logistic(size=pairs)
    chosen, rejected = np.where(felt > 0, both.T, both.T[::-1])
    said = np.abs(felt) / np.quantile(np.abs(felt), 0.95) + noise * chance.normal(size=pairs)
    strength = np.round(4 * np.clip(said, 0.25, 1.0)) / 4
    as_float = [torch.tensor(each, dtype=torch.float64) for each in (features, quality, strength)]
    chosen_, rejected_, prompt_ = (torch.tensor(each) for each in (chosen, rejected, prompt))
    return World(as_float[0], as_float[1], chosen_, rejected_, prompt_, as_float[2])


def learn(of: World, settings: DpoSettings, margin: float) -> tuple[float, float, float]:
    """Return the policy's gain in quality on unseen prompts, its win rate there, and its KL to the reference."""
    # Of the implicit reward, so that the search is as well conditioned with any beta.
    weights = torch.zeros(_FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")
    pairs = torch.stack([of.chosen, of.rejected], 1)
    tokens = torch.ones_like(pairs)
    reference = torch.full(pairs.shape, -np.log(_ANSWERS), dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logprobs = torch.log_softmax(of.features[:_SEEN_PROMPTS] @ weights / settings.beta, 1)
        policy = logprobs[of.prompt].gather(1, pairs)
        loss = pair_losses(policy, reference, tokens, settings, margin * of.strength).mean()
        loss = loss + _SHRINK * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    logprobs = torch.log_softmax(of.features[_SEEN_PROMPTS:] @ weights.detach() / settings.beta, 1)
    quality = of.quality[_SEEN_PROMPTS:]
    kl = (logprobs.exp() * (logprobs + np.log(_ANSWERS))).sum(1).mean()
    gain = (logprobs.exp() * quality).sum(1).mean() - quality.mean()
    ahead = (quality.unsqueeze(2) > quality.unsqueeze(1)).double().mean(2) + 0.5 / _ANSWERS
    return float(gain), float((logprobs.exp() * ahead).sum(1).mean()), float(kl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, nargs="+", default=[300, 3_000], help="numbers of choices")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5], help="of the strengths that are said")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| choices | noise of strengths | margin | gain at the same KL | difference to 0 | gain by beta (KL) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pairs in asked.pairs:
        for noise in asked.noise:
            worlds = [world(seed, pairs, noise) for seed in range(asked.seeds)]
            without: np.ndarray | None = None
            for margin in MARGINS:
                found = np.array(
                    [[learn(w, DpoSettings(beta=beta, sft_weight=0.0), margin) for beta in BETAS] for w in worlds]
                )
                at = np.array([_at_distance(each[:, 2], each[:, 0]) for each in found])
                without = at if without is None else without
                apart = at - without
                error = apart.std(ddof=1) / np.sqrt(len(apart))
                by_beta = ", ".join(f"{g:.2f} ({kl:.1f})" for g, _, kl in found.mean(0))
                line = f"| {pairs:,} | {noise:g} | {margin:g} | {at.mean():.3f} | {apart.mean():+.3f} ± {error:.3f} |"
                print(f"{line} {by_beta} |", flush=True)


def _at_distance(kl: np.ndarray, gain: np.ndarray) -> float:
    """The gain at `DISTANCE`, between the betas whose policies are on either side of it, linear in the root of the KL.

    Source: Gao et al. 2022, whose gains are linear in the root at first.
    """
    order = np.argsort(kl)
    return float(np.interp(math.sqrt(DISTANCE), np.sqrt(kl[order]), gain[order]))


if __name__ == "__main__":
    main()
