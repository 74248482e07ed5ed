"""DPO's losses and gradients against TRL's trainer, on the same sequences, policy and reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_inputs import BETTER, PAD_ID, WORSE, arguments, assert_same, dataset, model_inputs, policies, rows, tokenizer

from rewardloop_trainer.data.completions import token_logprobs
from rewardloop_trainer.policy.losses import dpo
from rewardloop_trainer.policy.offline_settings import PreferenceLoss

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is in the extra named parity")
torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("theirs", "ours", "per_token", "smoothing"),
    [
        ("sigmoid", "sigmoid", False, 0.0),
        ("sigmoid_norm", "sigmoid", True, 0.0),
        ("robust", "robust", False, 0.1),
        ("robust", "robust", False, 0.3),
        ("ipo", "ipo", True, 0.0),
        ("hinge", "hinge", False, 0.0),
    ],
)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_loss_and_gradients_are_those_of_trl(
    theirs: str, ours: str, per_token: bool, smoothing: float, beta: float, tmp_path: Path
) -> None:
    policy, reference = policies()
    their_policy, _ = policies()
    trainer = trl.DPOTrainer(
        model=their_policy,
        ref_model=reference,
        args=arguments(trl.DPOConfig, tmp_path, loss_type=[theirs], beta=beta, label_smoothing=smoothing),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=["a"], chosen=["b"], rejected=["c"]),
    )
    chosen, rejected = rows(BETTER), rows(WORSE)
    their_loss = trainer.compute_loss(trainer.model, model_inputs([*chosen, *rejected]))

    logprobs, is_token = token_logprobs(policy, [*chosen, *rejected], PAD_ID)
    with torch.no_grad():
        at_reference, _ = token_logprobs(reference, [*chosen, *rejected], PAD_ID)
    settings = PreferenceLoss.model_validate(
        {"loss": ours, "beta": beta, "label_smoothing": smoothing, "length_normalised": per_token, "sft_weight": 0.0}
    )
    sums, reference_sums, tokens = (each.sum(1).view(2, -1).T for each in (logprobs, at_reference, is_token))
    our_loss = dpo.pair_losses(sums, reference_sums, tokens, settings).mean()
    assert_same(our_loss, their_loss, policy, trainer.model)


def test_trl_ignores_label_smoothing_in_its_sigmoid_loss_and_this_does_not(tmp_path: Path) -> None:
    policy, reference = policies()
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments(trl.DPOConfig, tmp_path, loss_type=["sigmoid"], beta=0.1, label_smoothing=0.2),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=["a"], chosen=["b"], rejected=["c"]),
    )
    both = [*rows(BETTER), *rows(WORSE)]
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, model_inputs(both))
        ratio = (token_logprobs(policy, both, PAD_ID)[0] - token_logprobs(reference, both, PAD_ID)[0]).sum(1)
    d = ratio.view(2, -1)[0] - ratio.view(2, -1)[1]
    assert dpo.sigmoid(d, 0.1).mean().item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(dpo.sigmoid(d, 0.1, 0.2).mean().item() - theirs.item()) > 1e-3
