"""Makes heads of a trained head that no class of transformers has: TRL's and GRM's value heads, and Qwen's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewardloop_reward.neck import ACTIVATIONS, Layer, layers_neck
from rewardloop_reward.trunk import some_of
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.heads.choice import HeadChoice, parse_weights
from rewardloop_trainer.reward.heads.labels import label_sum
from rewardloop_trainer.reward.heads.remote_code import RemoteModel
from rewardloop_trainer.reward.heads.start import (
    OFFER,
    HeadStart,
    check_step_labels,
    folded,
    head_note,
    labels_of,
    random_ids,
)
from rewardloop_trainer.reward.heads.tensors import head_layers, head_name

# Classes of published reward models that transformers lacks: ReLU between the linear layers of `score`.
QWEN_STEPS = "Qwen2ForProcessRewardModel"
QWEN_SCORES = ("Qwen2ForRewardModel", QWEN_STEPS)
_VALUE_HEADS = ("v_head", "v_head.summary")  # of TRL, and of GRM with ReLU between its layers


def read_head(
    base: str, trunk: Any, unused: Sequence[str], decodes: bool, choice: HeadChoice, remote: RemoteModel | None
) -> HeadStart:
    """Return the start of the heads for a head that transformers has no class of, by its tensors."""
    config, head = trunk.config, head_name(unused)
    architecture = (config.architectures or [""])[0]
    layers = None if head is None else head_layers(base, unused, config.hidden_size)
    is_value = head in _VALUE_HEADS and layers is not None and layers[-1][0].shape[0] == 1
    is_known = is_value or (head == "score" and architecture in QWEN_SCORES)
    if layers is None or not decodes or not (is_known or remote is not None):
        raise UnusableBase(f"{base}: the checkpoint has a trained head that is not known: {some_of(unused)}; {OFFER}")
    weight, bias = layers[-1]
    count = weight.shape[0]
    check_step_labels(base, count, choice)
    labels = label_sum(base, labels_of(config, count), parse_weights(choice.label_weights))
    summed = torch.tensor(labels.weights)
    sequences = random_ids(trunk)
    if remote is not None:
        found = [remote.logits(ids, count) for ids in sequences]
        skips = remote.skips(sequences[0], config.pad_token_id, count)
    else:
        found = [_by_hand(trunk, ids, layers) for ids in sequences]
        skips = head == "score" and architecture != QWEN_STEPS
    logits = tuple(float(summed @ each) for each in found)
    note = head_note(f"{head}{f', {labels.note}' if labels.note else ''}", choice)
    start = HeadStart(*folded(weight, bias, summed), None, sequences, logits, skips, note, count)
    return start if len(layers) == 1 else _with_activation(start, trunk, layers[:-1], known=remote is None)


def _with_activation(start: HeadStart, trunk: Any, layers: Sequence[Layer], *, known: bool) -> HeadStart:
    """Add the neck: with ReLU if the head is ``known``, else with the function that gives the logits best."""
    heads = nn.Linear(start.weight.shape[1], 1)
    heads.load_state_dict({"weight": start.weight, "bias": start.bias})

    def candidates() -> Iterator[tuple[float, HeadStart]]:
        for name in ("relu",) if known else ACTIVATIONS:
            neck = layers_neck(layers, name)
            with torch.no_grad():
                read = [float(heads(neck(_last_state(trunk, ids)))) for ids in start.ids]
            far = max(abs(ours - theirs) for ours, theirs in zip(read, start.logits, strict=True))
            yield far, replace(start, neck=neck)

    return min(candidates(), key=lambda each: each[0])[1]


def _by_hand(trunk: Any, ids: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return the outputs (labels,) of a value head, as TRL and GRM compute them: of the last of the hidden states."""
    with torch.no_grad():
        outputs = trunk(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        values = outputs.hidden_states[-1][0, -1]
        for place, (weight, bias) in enumerate(layers):
            values = weight @ (values if place == 0 else values.clamp(min=0))
            values = values if bias is None else values + bias
    return cast(Tensor, values)


def _last_state(trunk: Any, ids: Tensor) -> Tensor:
    return cast(Tensor, trunk(input_ids=ids).last_hidden_state[:, -1])
