"""Log-probabilities of chosen tokens under a causal language model, without logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rewardloop_trainer.data.computing.head import head_of, keep_logits, logprobs_of
from rewardloop_trainer.data.computing.shards import within


def logprobs_at(
    model: Any,
    ids: Tensor,
    is_wanted: Tensor,
    temperature: float = 1.0,
    *,
    with_states: bool = False,
    layout: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each wanted token given the tokens before it.

    The trunk runs once, and the head for the wanted tokens alone, block by block. If the head cannot be separated, the
    model gives the logits of all columns from the first wanted one on.

    Args:
        model: A Hugging Face causal LM in evaluation mode.
        ids: (rows, columns), padded at the end.
        is_wanted: (rows, columns), bool, True at the tokens that are asked for; never in column 0.
        temperature: What the logits are divided by.
        with_states: Whether the hidden states are returned, too.
        layout: What else the model is given by name, such as an attention mask.

    Returns:
        (wanted,), in nats, float32, row by row; and the last hidden states (rows, columns, width), of which those in
        column t predict the token in column t + 1, or None.
    """
    return within(model, lambda: _logprobs_at(model, ids, is_wanted, temperature, with_states, layout))


def _logprobs_at(
    model: Any,
    ids: Tensor,
    is_wanted: Tensor,
    temperature: float,
    with_states: bool,
    layout: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    given = {"input_ids": ids, "use_cache": False, **(layout or {})}
    rows, places = is_wanted[:, 1:].nonzero(as_tuple=True)  # the token in column t + 1 is predicted in column t
    targets = ids[rows, places + 1]
    if head := head_of(model):
        states: Tensor = model.base_model(**given).last_hidden_state
        return head.logprobs(states[rows, places], targets, temperature), states if with_states else None
    columns, first = ids.shape[1], int(places.min()) if len(places) else 0
    output = model(**given, output_hidden_states=with_states or None, **keep_logits(model, columns - first))
    logits = output.logits[:, first - columns :]  # also of a model that computes those of all columns
    found = logprobs_of(logits[rows, places - first], targets, temperature)
    return found, output.hidden_states[-1] if with_states else None
