"""What each algorithm converges to, against the optimum in closed form: pi_ref * exp(r / beta), on a listable space.

No other implementation is needed as an oracle: E[r] - beta KL(pi || pi_ref) has one maximum, and it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from support.enumerable_policies import (
    LONGEST,
    PAD,
    PROMPTS,
    WORDS,
    ListedSampler,
    answers,
    distribution,
    optimum,
    text_of,
    total_variation,
    word_encoder,
    word_llama,
)
from support.learning_runs import learning_seed
from torch import Tensor

from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.completions import encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.policy.dpo_train import train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward

ENCODER = word_encoder()
BETA = 0.5
NEAR = 0.05
FAR = 0.15

# Few, large steps: what is left at the end is the noise of the last ones, which the falling rate takes out.
ONLINE = OnlineSettings.model_validate(
    {
        "steps": 60,
        "prompts": 16,
        "responses": 32,
        "minibatch": 128,
        "max_new_tokens": LONGEST,
        "learning_rate": 3e-3,
        "beta": BETA,
        "max_update_kl": 1.0,
        "rewards": {"missing_end_penalty": 0.0, "empty_score": 0.0},
        "critic": {"learning_rate": 1e-2, "coefficient": 0.5, "lam": 1.0},
        "checkpoint_every_steps": 0,
    }
)


def rewards_of(count: int, seed: int, deviation: float) -> Tensor:
    """Fixed by the seed; the first answer, the empty one, has 0, for no reward model scores it."""
    rewards = deviation * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    rewards[0] = 0.0
    return rewards


@pytest.mark.learning
@pytest.mark.parametrize("seed", [learning_seed(seed) for seed in range(2)])
@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo", "reinforce-pp", "dr-grpo"])
def test_it_reaches_the_optimum_of_reward_less_kl(algorithm: OnlineAlgorithm, seed: int) -> None:
    model = word_llama(seed)
    said = {prompt: answers(ENCODER, prompt) for prompt in PROMPTS}
    rewards = {prompt: rewards_of(len(said[prompt]), 10 * seed + i, 0.5) for i, prompt in enumerate(PROMPTS)}
    table = {
        (prompt, text_of(ENCODER, answer)): Reward(reward.item())
        for prompt in PROMPTS
        for answer, reward in zip(said[prompt], rewards[prompt], strict=True)
    }
    optima = {prompt: optimum(distribution(model, ENCODER, prompt), rewards[prompt], BETA) for prompt in PROMPTS}

    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
        return [
            [table[prompt, text] if text else None for text in group]
            for prompt, group in zip(prompts, texts, strict=True)
        ]

    def distances() -> list[float]:
        return [total_variation(distribution(model, ENCODER, prompt), optima[prompt]) for prompt in PROMPTS]

    assert max(distances()) > FAR
    sampler = ListedSampler(model, ENCODER)
    task = OnlineTask(algorithm_of(algorithm, ONLINE), ONLINE, PROMPTS)
    train_online(model, ENCODER, task, score, seed=seed, sampler=sampler)
    assert max(distances()) < NEAR


@pytest.mark.learning
@pytest.mark.parametrize("seed", [learning_seed(seed) for seed in range(2)])
def test_dpo_on_bradley_terry_labels_reaches_the_same_optimum(seed: int) -> None:
    """Pairs are drawn from the reference and judged by the reward: the policy they imply is the one RL would find.

    It is compared among the answers that were compared: to all others DPO is indifferent.
    """
    texts = [" ".join(words) for length in range(LONGEST + 1) for words in product(WORDS, repeat=length)]
    model = word_llama(seed)

    def among(prompt: Prompt) -> Tensor:
        rows = [row for row in encode_completions(ENCODER, [(prompt, text) for text in texts]) if row is not None]
        return sequence_logprobs(model, rows, PAD, 10_000).double().softmax(0)

    pairs: list[Pair] = []
    optima: dict[Prompt, Tensor] = {}
    for i, prompt in enumerate(PROMPTS):
        reference, rewards = among(prompt), rewards_of(len(texts), 10 * seed + i, 0.8)
        optima[prompt] = optimum(reference, rewards, BETA)
        pairs += judged_pairs(prompt, texts, reference, rewards, 200_000, seed)
    assert max(total_variation(among(prompt), optima[prompt]) for prompt in PROMPTS) > FAR
    settings = DpoSettings.model_validate(
        {"beta": BETA, "sft_weight": 0.0, "learning_rate": 5e-3, "epochs": 100, "batch_pairs": 1000}
    )
    train_policy(model, ENCODER, pairs, [], settings)
    assert max(total_variation(among(prompt), optima[prompt]) for prompt in PROMPTS) < NEAR


def judged_pairs(
    prompt: Prompt, texts: Sequence[str], reference: Tensor, rewards: Tensor, count: int, seed: int
) -> list[Pair]:
    """``count`` pairs drawn from the reference, each judged with probability sigmoid(r_1 - r_2); equal ones as one."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.multinomial(reference, 2 * count, replacement=True, generator=generator).view(2, -1)
    first_wins = torch.rand(count, generator=generator) < torch.sigmoid(rewards[first] - rewards[second])
    chosen, rejected = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
    times = torch.bincount(chosen * len(texts) + rejected, minlength=len(texts) ** 2).view(len(texts), -1)
    return [
        Pair(prompt, texts[i], texts[j], float(times[i, j]))
        for i, j in product(range(len(texts)), repeat=2)
        if i != j and times[i, j]
    ]
