"""What each algorithm makes of a step's answers, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.policy.losses.advantages import overlong_penalty
from rewardloop_trainer.policy.offline_settings import PreferenceLoss
from rewardloop_trainer.policy.online.dapo import Dapo
from rewardloop_trainer.policy.online.dr_grpo import DrGrpo
from rewardloop_trainer.policy.online.experience import Algorithm, Now, Samples
from rewardloop_trainer.policy.online.grpo import Grpo
from rewardloop_trainer.policy.online.online_dpo import OnlineDpo
from rewardloop_trainer.policy.online.ppo import Ppo
from rewardloop_trainer.policy.online.reinforce_pp import ReinforcePp
from rewardloop_trainer.policy.online.rloo import Rloo
from rewardloop_trainer.policy.online_registry import (
    DapoSettings,
    DrGrpoSettings,
    GrpoSettings,
    OnlineDpoSettings,
    PpoSettings,
    ReinforcePpSettings,
    RlooSettings,
)
from rewardloop_trainer.policy.online_settings import CriticSettings, OnlineSettings

ROWS = [Completion((9, 3, 4), 1), Completion((9, 5), 1)]


def samples(
    scores: tuple[float, float] = (1.0, 0.0),
    reference: Tensor | None = None,
    values: Tensor | None = None,
    texts: tuple[str, str] = ("one", "other"),
) -> Samples:
    """Two answers to one prompt, of 2 tokens and of 1, with log-probabilities -1, -2 and -3."""
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    is_token = torch.tensor([[True, True], [True, False]])
    return Samples(
        ROWS,
        texts,
        2,
        is_token,
        logprobs,
        logprobs if reference is None else reference,
        is_token.float(),
        torch.tensor(scores),
        values,
    )


def total(algorithm: Algorithm, seen: Samples, now: Now, beta: float = 0.1) -> float:
    """The loss of a minibatch of all of it."""
    experience = algorithm.experience(seen, beta)
    return (algorithm.loss(now, experience.tensors).sum() / experience.weight.sum()).item()


def test_grpo_gives_every_token_its_answers_score_less_the_mean_of_the_group() -> None:
    seen = samples((1.0, 0.0))
    experience = Grpo(GrpoSettings.of(OnlineSettings())).experience(seen, 0.1)
    assert experience.tensors["advantages"].tolist() == [[0.5, 0.5], [-0.5, 0.0]]
    assert experience.weight.tolist() == [2.0, 1.0]
    # Before an update every ratio is 1: -(0.5 + 0.5 - 0.5) / 3 tokens.
    assert total(Grpo(GrpoSettings.of(OnlineSettings())), seen, Now(seen.logprobs, None)) == pytest.approx(-0.5 / 3)


def test_kl_of_the_whole_answer_is_taken_off_its_score_in_grpo_and_rloo() -> None:
    reference = torch.tensor([[-2.0, -4.0], [-3.0, 0.0]])  # log ratios 1 and 2: 3 nats for the first answer
    seen = samples((1.0, 0.0), reference)
    grpo = Grpo(GrpoSettings.of(OnlineSettings())).experience(seen, 0.1).tensors["advantages"]
    assert grpo[0, 0].item() == pytest.approx((0.7 - 0.0) / 2)
    rloo = Rloo(RlooSettings.of(OnlineSettings())).experience(seen, 0.1).tensors["advantages"]
    assert rloo.tolist() == pytest.approx([0.7, -0.7])


def test_rloo_clips_the_ratio_of_the_whole_answer() -> None:
    seen = samples((1.0, 0.0))
    moved = Now(seen.logprobs + torch.tensor([[0.1, 0.2], [-0.5, 0.0]]), None)
    # Ratios exp(0.3) = 1.35 and exp(-0.5) = 0.607; advantages 1 and -1; clipped at 1.2 and 0.8.
    assert total(Rloo(RlooSettings.of(OnlineSettings())), seen, moved) == pytest.approx((-1.2 + 0.8) / 2)


def test_groups_that_agree_are_counted_and_teach_nothing() -> None:
    experience = Grpo(GrpoSettings.of(OnlineSettings())).experience(samples((1.0, 1.0)), 0.1)
    assert experience.figures == {"groups_alike": 1.0}
    assert not experience.tensors["advantages"].any()


def test_ppo_pays_for_kl_at_each_token_and_learns_returns_with_its_critic() -> None:
    critic = CriticSettings(gamma=1.0, lam=1.0, coefficient=0.1, clip=0.2)
    settings = OnlineSettings(critic=critic)
    reference = torch.tensor([[-2.0, -4.0], [-3.0, 0.0]])
    values = torch.tensor([[0.5, 0.25], [0.0, 0.0]])
    seen = samples((1.0, 0.0), reference, values)
    tensors = Ppo(PpoSettings.of(settings)).experience(seen, 0.1).tensors
    # Rewards -0.1 and 1 - 0.2; with lambda 1 the returns are the rewards still to come.
    assert tensors["returns"][0].tolist() == pytest.approx([0.7, 0.8])
    advantages = torch.tensor([0.7 - 0.5, 0.8 - 0.25, 0.0])
    whitened = (advantages - advantages.mean()) / advantages.std(unbiased=False)
    assert tensors["advantages"][seen.is_token].tolist() == pytest.approx(whitened.tolist(), abs=1e-5)
    # Ratios are 1, and whitened advantages sum to 0: what is left is the critic's, ((0.2)^2 + (0.55)^2) / 2 / 3 tokens.
    now = Now(seen.logprobs, values)
    assert total(Ppo(PpoSettings.of(settings)), seen, now) == pytest.approx(0.1 * (0.04 + 0.3025) / 2 / 3, abs=1e-6)


def test_online_dpo_pairs_the_best_with_the_worst() -> None:
    reference = torch.tensor([[-1.0, -1.5], [-3.5, 0.0]])
    settings = PreferenceLoss(beta=0.5, sft_weight=0.0)
    seen = samples((0.0, 2.0), reference)
    experience = OnlineDpo(OnlineDpoSettings(settings)).experience(seen, 0.0)
    assert experience.rows == [ROWS[1], ROWS[0]]
    # Log ratios: chosen -3 + 3.5 = 0.5, rejected -3 + 2.5 = -0.5; D = 1.
    loss = OnlineDpo(OnlineDpoSettings(settings)).loss(Now(seen.logprobs[[1, 0]], None), experience.tensors)
    assert loss.sum().item() / experience.weight.sum().item() == pytest.approx(math.log1p(math.exp(-0.5)))


@pytest.mark.parametrize("seen", [samples((1.0, 1.0)), samples((1.0, 0.0), texts=("same", "same"))])
def test_online_dpo_drops_pairs_that_do_not_differ(seen: Samples) -> None:
    experience = OnlineDpo(OnlineDpoSettings(PreferenceLoss())).experience(seen, 0.0)
    assert list(experience.rows) == []
    assert experience.figures == {"pairs_dropped": 1.0}


def test_tokens_of_an_older_policy_weigh_by_their_importance() -> None:
    fresh = samples((1.0, 0.0))
    stale = Samples(
        fresh.rows, fresh.texts, 2, fresh.is_token, fresh.logprobs, fresh.reference,
        torch.tensor([[0.5, 2.0], [1.0, 0.0]]), fresh.scores, None,
    )  # fmt: skip
    assert Grpo(GrpoSettings.of(OnlineSettings())).experience(stale, 0.1).tensors["advantages"].tolist() == [
        [0.25, 1.0],
        [-0.5, 0.0],
    ]
    rloo = Rloo(RlooSettings.of(OnlineSettings(most_importance=2.0))).experience(stale, 0.1).tensors["advantages"]
    assert rloo.tolist() == pytest.approx([1.0, -1.0])


def test_reinforce_pp_whitens_the_returns_of_all_tokens() -> None:
    reference = torch.tensor([[-2.0, -4.0], [-3.0, 0.0]])
    seen = samples((1.0, 0.0), reference)
    algorithm = ReinforcePp(ReinforcePpSettings.of(OnlineSettings()))
    advantages = algorithm.experience(seen, 0.1).tensors["advantages"]
    # Rewards -0.1 and 1 - 0.2, and 0 for the second answer: returns 0.7 and 0.8, and 0; mean 0.5.
    deviation = math.sqrt((0.2**2 + 0.3**2 + 0.5**2) / 3)
    assert advantages[seen.is_token].tolist() == pytest.approx([0.2 / deviation, 0.3 / deviation, -0.5 / deviation])
    assert total(algorithm, seen, Now(seen.logprobs, None)) == pytest.approx(0, abs=1e-6)


def test_dr_grpo_divides_by_the_most_tokens_whatever_the_lengths_are() -> None:
    algorithm = DrGrpo(DrGrpoSettings.of(OnlineSettings(max_new_tokens=10)))
    seen = samples((1.0, 0.0))
    assert algorithm.experience(seen, 0.1).tensors["advantages"].tolist() == [[0.5, 0.5], [-0.5, 0.0]]
    # -(0.5 + 0.5 - 0.5) over 2 answers of at most 10 tokens.
    assert total(algorithm, seen, Now(seen.logprobs, None)) == pytest.approx(-0.5 / 20)


def test_dapo_scales_by_the_deviation_counts_ratios_higher_and_has_no_kl() -> None:
    algorithm = Dapo(DapoSettings.of(OnlineSettings(max_new_tokens=10, overlong_tokens=0)))
    seen = samples((1.0, 0.0), torch.tensor([[-2.0, -4.0], [-3.0, 0.0]]))
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    advantages = algorithm.experience(seen, 0.1).tensors["advantages"]
    assert advantages[0].tolist() == pytest.approx([advantage, advantage])
    moved = Now(seen.logprobs + torch.tensor([[0.5, 0.2], [-0.5, 0.0]]), None)
    # Ratios exp(0.5) = 1.65, clipped at 1.28; exp(0.2) = 1.2214, not clipped; exp(-0.5) = 0.607, clipped at 0.8.
    assert total(algorithm, seen, moved) == pytest.approx(advantage * (-1.28 - math.exp(0.2) + 0.8) / 3)


def test_dapo_drops_groups_that_agree_and_charges_for_length() -> None:
    charged = Dapo(DapoSettings.of(OnlineSettings(max_new_tokens=2, overlong_tokens=2)))
    found = charged.experience(samples((1.0, 1.0)), 0.0)
    # Two tokens cost 1 and one token 0.5, so that the scores no longer agree.
    assert found.figures == {"groups_alike": 1.0, "overlong": 1.0}
    assert (found.tensors["advantages"][:, 0] > 0).tolist() == [False, True]
    free = Dapo(DapoSettings.of(OnlineSettings(max_new_tokens=2, overlong_tokens=0)))
    assert list(free.experience(samples((1.0, 1.0)), 0.0).rows) == []


def test_the_penalty_grows_over_the_last_tokens() -> None:
    tokens = torch.tensor([3, 6, 8, 10])
    assert overlong_penalty(tokens, 10, 4).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert overlong_penalty(tokens, 10, 0).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_online_dpo_weighs_pairs_of_people_by_their_weights() -> None:
    algorithm = OnlineDpo(OnlineDpoSettings(PreferenceLoss(beta=0.5, sft_weight=0.0)))
    near, far = torch.tensor([[-1.0, -1.5], [-3.5, 0.0]]), torch.tensor([[-4.0, -4.0], [-1.0, 0.0]])
    found, losses = [], []
    for reference, weight in ((near, 1.0), (far, 0.25)):
        seen = samples((1.0, 0.0), reference)
        found.append(algorithm.experience(replace(seen, weights=torch.full((2,), weight)), 0.0))
        alone = algorithm.experience(seen, 0.0)
        losses.append(algorithm.loss(Now(seen.logprobs, None), alone.tensors).sum().item())
    both = found[0].joined(found[1])
    now = Now(torch.cat([seen.logprobs, seen.logprobs]), None)
    loss = (algorithm.loss(now, both.tensors).sum() / both.weight.sum()).item()
    assert loss == pytest.approx((losses[0] + 0.25 * losses[1]) / 2)
