"""RLOO, GRPO and its relatives against TRL's trainers: advantages from the same answers and rewards, then loss and
gradients at a policy that has moved since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from same_inputs import (
    BETTER,
    NEAR,
    PAD_ID,
    WORSE,
    arguments,
    assert_same,
    dataset,
    moved,
    policies,
    rows,
    tokenizer,
)
from torch import Tensor

from rewardloop_trainer.data.completions import from_start, token_logprobs
from rewardloop_trainer.policy.losses.clipped import token_mean
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.online.dapo import Dapo
from rewardloop_trainer.policy.online.dr_grpo import DrGrpo
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online.grpo import Grpo
from rewardloop_trainer.policy.online.rloo import Rloo
from rewardloop_trainer.policy.online_registry import DapoSettings, DrGrpoSettings, GrpoSettings, RlooSettings
from rewardloop_trainer.policy.online_settings import OnlineSettings

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is in the extra named parity")
torch.set_num_threads(1)

# Two answers to each prompt, next to each other; the last prompt's scores are alike.
ROWS = [row for pair in zip(rows(BETTER), rows(WORSE), strict=True) for row in pair]
SCORES = [1.0, -0.5, 0.3, 2.0, -1.0, -1.5, 0.7, 0.7]
COLUMNS = max(row.tokens for row in ROWS)


def per_token(model: Any) -> tuple[Tensor, Tensor]:
    logprobs, is_token = token_logprobs(model, ROWS, PAD_ID)
    moved_to_start = from_start(logprobs, is_token, COLUMNS)
    return moved_to_start, torch.arange(COLUMNS) < is_token.sum(1, keepdim=True)


def samples(policy: Any, reference: Any) -> Samples:
    with torch.no_grad():
        (logprobs, is_token), (at_reference, _) = per_token(policy), per_token(reference)
    scores = torch.tensor(SCORES)
    return Samples(
        ROWS, [str(i) for i in range(8)], 2, is_token, logprobs, at_reference, is_token.float(), scores, None
    )


def our_loss(algorithm: Algorithm, experience: Experience, policy: Any) -> Tensor:
    logprobs, _ = per_token(policy)
    return algorithm.loss(Now(logprobs, None), experience.tensors).sum() / experience.weight.sum()


def trainer_of(name: str, directory: Path, beta: float, **chosen: Any) -> Any:
    """A trainer of TRL's on the policy that sampled; it reads its reference from a file."""
    policy, reference = policies()
    reference.save_pretrained(directory / "reference")
    policy.config._name_or_path = str(directory / "reference")
    settings = {"beta": beta, "num_generations": 2, "per_device_train_batch_size": 8, "max_completion_length": COLUMNS}
    trainer = getattr(trl, f"{name}Trainer")(
        model=policy,
        reward_funcs=lambda prompts, **_: SCORES,
        args=arguments(getattr(trl, f"{name}Config"), directory, **settings, **chosen),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=["a"] * 8),
    )
    trainer.model.eval()
    return trainer


def their_batch(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What TRL makes of these answers and rewards; only its sampling is replaced."""
    prompts = [list(row.ids[: row.start]) for row in ROWS]
    said = [list(row.ids[row.start :]) for row in ROWS]
    texts = ["" for _ in ROWS]
    if isinstance(trainer, trl.RLOOTrainer):
        whole: tuple[Any, ...] = (prompts, said, texts)
    else:  # no tools, no log-probabilities of another engine, no images
        whole = (prompts, said, None, texts, None, {}, None, None)
    monkeypatch.setattr(trainer, "_generate", lambda *_, **__: whole)
    batch: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": "a"} for _ in ROWS])
    return batch


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_is_that_of_trl(beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("RLOO", tmp_path, beta)
    policy, reference = policies()
    algorithm = Rloo(RlooSettings.of(OnlineSettings.model_validate({"responses": 2})))
    experience = algorithm.experience(samples(policy, reference), beta)
    batch = their_batch(trainer, monkeypatch)
    torch.testing.assert_close(experience.tensors["advantages"], batch["advantages"], atol=NEAR, rtol=0)
    for model in (policy, trainer.model):
        moved(model, 5)
    assert_same(
        our_loss(algorithm, experience, policy), trainer.compute_loss(trainer.model, batch), policy, trainer.model
    )


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_grpo_is_that_of_trl(beta: float, scale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL has the KL as a loss a token, this project in the reward: theirs is added here, from the same estimator."""
    trainer = trainer_of(
        "GRPO",
        tmp_path,
        beta,
        loss_type="bnpo",
        scale_rewards="group" if scale else "none",
        use_bias_correction_kl=False,
    )
    policy, reference = policies()
    algorithm = Grpo(GrpoSettings.of(OnlineSettings.model_validate({"responses": 2, "scale_groups": scale})))
    said = samples(policy, reference)
    experience = algorithm.experience(said, 0.0)
    batch = their_batch(trainer, monkeypatch)
    ours = experience.tensors["advantages"][:, 0]
    torch.testing.assert_close(ours, batch["advantages"], atol=NEAR, rtol=0)
    batch["old_per_token_logps"] = said.logprobs
    for model in (policy, trainer.model):
        moved(model, 5)
    loss = our_loss(algorithm, experience, policy)
    if beta:
        kl = kl_estimate(per_token(policy)[0], said.reference, "k3")
        loss = loss + beta * token_mean(kl, said.is_token)
    assert_same(loss, trainer.compute_loss(trainer.model, batch), policy, trainer.model)


def test_dr_grpo_is_that_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("GRPO", tmp_path, 0.0, loss_type="dr_grpo", scale_rewards="none")
    policy, reference = policies()
    algorithm = DrGrpo(DrGrpoSettings.of(OnlineSettings.model_validate({"max_new_tokens": COLUMNS})))
    said = samples(policy, reference)
    experience = algorithm.experience(said, 0.0)
    batch = their_batch(trainer, monkeypatch)
    batch["old_per_token_logps"] = said.logprobs
    for model in (policy, trainer.model):
        moved(model, 5)
    assert_same(
        our_loss(algorithm, experience, policy), trainer.compute_loss(trainer.model, batch), policy, trainer.model
    )


def test_dapo_is_that_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL keeps the group that agrees, whose tokens count in the mean; here it is dropped."""
    trainer = trainer_of("GRPO", tmp_path, 0.0, loss_type="dapo", scale_rewards="group", epsilon_high=0.28)
    policy, reference = policies()
    algorithm = Dapo(DapoSettings.of(OnlineSettings.model_validate({"overlong_tokens": 0})))
    said = samples(policy, reference)
    experience = algorithm.experience(said, 0.0)
    assert list(experience.rows) == ROWS[:6]
    batch = their_batch(trainer, monkeypatch)
    torch.testing.assert_close(experience.tensors["advantages"][:, 0], batch["advantages"][:6], atol=NEAR, rtol=0)
    batch["old_per_token_logps"] = said.logprobs
    for model in (policy, trainer.model):
        moved(model, 5, 0.05)
    logprobs, _ = per_token(policy)
    loss = algorithm.loss(Now(logprobs[:6], None), experience.tensors).sum() / said.is_token.sum()
    assert_same(loss, trainer.compute_loss(trainer.model, batch), policy, trainer.model)
