"""What a reward model says of a person's choices that has not learned from that person.

The people are divided into folds. For each fold the linear part of a reward model, heads and tokens' weights, is fitted
on the choices of the people in the other folds, and says what it expects of this fold's. The trunk stays as it is and
must not have learned from these people either: it is that of a base. So nobody is trusted for agreeing with a model
that learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.linear_start.choose import choose_ridges
from rewardloop_trainer.reward.linear_start.compare import state_what_was_said, states_and_logits
from rewardloop_trainer.reward.linear_start.solve import fit
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

FOLDS = 5
LEAST_PAIRS = 100


def cross_fitted_margins(
    model: RewardModel,
    encoder: Encoder,
    pairs: Sequence[Pair],
    settings: RewardTraining,
    fold_of: Callable[[str, int], int],
) -> Mapping[str, float]:
    """Return, by event id, the log odds with which each pair's chosen response is expected to be chosen.

    Args:
        model: A model that has learned from none of the people. It is left as it is.
        encoder: Its tokenizer and text layout.
        pairs: Choices of named people; each weighs in the fit what its record weighs. Those that the text format has no
            form for are left out.
        settings: Bounds of memory.
        fold_of: Gives the fold of a person, from 0 to the number of folds less 1.

    Returns:
        Empty if there are fewer than 100 pairs, or all people are in one fold.
    """
    folds = {pair.event_id: fold_of(pair.annotator, FOLDS) for pair in pairs}
    examples = encode_records(encoder, pairs).examples
    if len(examples) < LEAST_PAIRS or len(set(folds.values())) < 2:
        return {}
    sequences = [s for example in examples for s in example.sequences]
    was_training = model.training
    model.eval()
    states, logits = states_and_logits(model, sequences, encoder.format.pad, 2 * settings.micro_batch_tokens)
    model.train(was_training)
    # The heads of a base say nothing yet, or what their authors' data said: they are left out.
    said, _ = state_what_was_said(examples, states, torch.zeros(len(states), 1).to(logits), settings)
    said = replace(said, weight=said.judged.unsqueeze(-1), offset=torch.zeros_like(said.offset))
    if not said.is_apart.any() or not said.is_learned.any():
        return {}
    ridges, _ = choose_ridges(said, model)
    of_fold = torch.tensor([folds[example.key] for example in examples])
    margins = torch.zeros(len(examples))
    for fold in sorted(set(folds.values())):
        is_mine = of_fold == fold
        others = replace(said, weight=said.weight * ~is_mine.unsqueeze(-1))
        if others.weight.any():
            margins[is_mine] = fit(others, ridges).margins(said).squeeze(-1)[is_mine]
    return dict(zip((example.key for example in examples), margins.tolist(), strict=True))
