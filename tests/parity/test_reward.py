"""The reward model's loss and gradients against TRL's trainer, from one sequence classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from same_inputs import BETTER, ENCODER, NEAR, PROMPTS, WORSE, arguments, dataset, model_inputs, rows, tokenizer
from support.policy_versions import small_llama

from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.reward import losses as reward_losses
from rewardloop_trainer.reward.examples import encode_records, logits_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.step import step_loss

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is in the extra named parity")
torch.set_num_threads(1)


def classifier(directory: Path) -> Any:
    """Saved, so that both start from the same file."""
    from transformers import LlamaForSequenceClassification

    config = small_llama().config
    config.num_labels = 1
    torch.manual_seed(0)
    model: Any = LlamaForSequenceClassification(config)
    model.save_pretrained(directory)
    return model.eval()


def trainer_of(model: Any, directory: Path, centring: float | None) -> Any:
    return trl.RewardTrainer(
        model=model,
        args=arguments(trl.RewardConfig, directory, center_rewards_coefficient=centring),
        processing_class=tokenizer(),
        train_dataset=dataset(chosen=["b"], rejected=["c"]),
    )


def inputs() -> dict[str, torch.Tensor]:
    found = model_inputs([*rows(BETTER), *rows(WORSE)])
    del found["completion_mask"]
    return found


@pytest.mark.parametrize("centring", [0.0, 0.01, 0.5])
def test_loss_and_gradients_are_those_of_trl(centring: float, tmp_path: Path) -> None:
    theirs = classifier(tmp_path / "base")
    ours = RewardModel.from_base(tmp_path / "base", heads=1)
    trainer = trainer_of(theirs, tmp_path, centring or None)
    their_loss = trainer.compute_loss(trainer.model, inputs())

    pairs = [Pair(p, c, r) for p, c, r in zip(PROMPTS, BETTER, WORSE, strict=True)]
    examples = encode_records(ENCODER, pairs).examples
    logits = logits_of(ours, [s for e in examples for s in e.sequences], ENCODER.format.pad, 10_000)
    our_loss = step_loss(logits, ours.threshold, examples, RewardTraining.model_validate({"centring": centring}))
    assert abs(our_loss.item() - their_loss.item()) < NEAR

    our_loss.backward()  # type: ignore[no-untyped-call]
    their_loss.backward()
    named = dict(trainer.model.named_parameters())
    compared = [(ours.heads.weight, named["score.weight"])]
    compared += [(p, named[f"model.{n.removeprefix('trunk.')}"]) for n, p in ours.named_parameters() if "trunk." in n]
    assert len(compared) > 10
    for mine, yours in compared:
        torch.testing.assert_close(mine.grad, yours.grad, atol=NEAR, rtol=1e-4)


def test_the_margin_is_inside_as_in_trl(tmp_path: Path) -> None:
    theirs = classifier(tmp_path / "base")
    trainer = trainer_of(theirs, tmp_path, None)
    margin = torch.tensor([0.0, 0.5, 1.0, 3.0])
    with torch.no_grad():
        their_loss = trainer.compute_loss(trainer.model, inputs() | {"margin": margin})
        mine = inputs()
        ours = RewardModel.from_base(tmp_path / "base", heads=1)
        logits = ours(mine["input_ids"], mine["attention_mask"])
    our_loss = reward_losses.bradley_terry(logits[:4], logits[4:], margin.unsqueeze(1)).mean()
    assert abs(our_loss.item() - their_loss.item()) < NEAR
