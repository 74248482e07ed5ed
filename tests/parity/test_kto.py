"""KTO's loss and gradients against TRL's trainer: reference point from mismatched answers, weights, both kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from same_inputs import BETTER, PAD_ID, arguments, assert_same, dataset, model_inputs, policies, rows, tokenizer

from rewardloop_trainer.data.completions import token_logprobs
from rewardloop_trainer.policy.losses import kto

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is in the extra named parity")
torch.set_num_threads(1)


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("is_wanted", [(True, False, True, False), (True, True, True, False)])
@pytest.mark.parametrize("swapped", [False, True])  # one way round the mean of the mismatched is above 0
def test_loss_and_gradients_are_those_of_trl(
    beta: float, is_wanted: tuple[bool, ...], swapped: bool, tmp_path: Path
) -> None:
    (policy, reference), (their_policy, their_reference) = policies(), policies()
    if swapped:
        policy, reference, their_policy, their_reference = reference, policy, their_reference, their_policy
    wanted = torch.tensor(is_wanted)
    weight = kto.balanced_weights(wanted)
    trainer = trl.KTOTrainer(
        model=their_policy,
        ref_model=their_reference,
        args=arguments(
            trl.KTOConfig,
            tmp_path,
            beta=beta,
            desirable_weight=weight[0].item(),
            undesirable_weight=weight[-1].item(),
            per_device_train_batch_size=4,
        ),
        processing_class=tokenizer(),
        train_dataset=dataset(prompt=["a"] * 4, completion=["b"] * 4, label=list(is_wanted)),
    )
    said, mismatched = rows(BETTER), rows((BETTER[-1], *BETTER[:-1]))
    inputs = model_inputs(said) | {f"KL_{name}": value for name, value in model_inputs(mismatched).items()}
    their_loss = trainer.compute_loss(trainer.model, inputs | {"label": wanted})

    logprobs = token_logprobs(policy, said, PAD_ID)[0].sum(1)
    with torch.no_grad():
        at_reference = token_logprobs(reference, said, PAD_ID)[0].sum(1)
        apart = [token_logprobs(model, mismatched, PAD_ID)[0].sum(1) for model in (policy, reference)]
    z = kto.reference_point(apart[0] - apart[1])
    our_loss = (weight * kto.kto(logprobs - at_reference, wanted, z, beta)).mean()
    assert_same(our_loss, their_loss, policy, trainer.model)
