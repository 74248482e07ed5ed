"""Tries a loaded policy: it answers several prompts together as `generate` of transformers answers each alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rewardloop_sampling.decoding import Decoding
from rewardloop_sampling.generation_rules import GenerationRules, ProcessedRows

STEPS = 4  # new tokens that are compared
# Of the largest score. Float32 differs by 1e-6 between batch shapes, and half precision by 1e-2.
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.05


class WrongAnswers(ValueError):
    """Raised when a model does not answer as `generate` of transformers does, or gives numbers that are not finite."""


@torch.inference_mode()
def check_answers(model: Any, prompts: Sequence[Sequence[int]], rules: GenerationRules, pad_id: int) -> None:
    """Compare scores of the next tokens, for the prompts together, with those of `generate` for each prompt alone.

    Args:
        model: A loaded causal language model with its generation config.
        prompts: Token ids of each prompt, of different lengths, so that some are padded.
        rules: The model's rules.
        pad_id: The id of the padding token.

    Raises:
        WrongAnswers: If a score differs or is not a number.
    """
    alone = [_generated(model, prompt, pad_id) for prompt in prompts]
    decoding = Decoding(model, prompts, pad_id)
    rows = ProcessedRows(rules, prompts, model.device)
    logits = decoding.prefill(range(len(prompts)))
    for step in range(STEPS):
        scores = rows.scores(logits).float()
        for row, (_, expected) in enumerate(alone):
            if step < len(expected):
                _compare(scores[row], expected[step], rules, is_half=logits.dtype != torch.float32)
        # A row that has ended goes on with its last token, which nothing reads.
        ids = torch.tensor([said[min(step, len(said) - 1)] for said, _ in alone], device=model.device)
        rows.append(ids)
        logits = decoding.step(ids)


def _generated(model: Any, prompt: Sequence[int], pad_id: int) -> tuple[list[int], list[Tensor]]:
    """Return the ids that `generate` takes greedily, and the scores (vocabulary,) before each."""
    ids = torch.tensor([list(prompt)], device=model.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a least length may be above these few tokens
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=STEPS,
            pad_token_id=pad_id,
            output_scores=True,
            return_dict_in_generate=True,
        )
    return output.sequences[0, len(prompt) :].tolist(), [scores[0].float() for scores in output.scores]


def _compare(ours: Tensor, theirs: Tensor, rules: GenerationRules, *, is_half: bool) -> None:
    if not bool(torch.isfinite(theirs).any()) or bool(theirs.isnan().any() | ours.isnan().any()):
        raise WrongAnswers("its logits are not numbers")
    # An answer also ends with its text format's end, which the rules treat as an end and `generate` does not.
    is_compared = torch.ones_like(ours, dtype=torch.bool)
    is_compared[sorted(rules.end_ids)] = False
    ours, theirs = ours[is_compared], theirs[is_compared]
    is_open = torch.isfinite(theirs)
    if not torch.equal(is_open, torch.isfinite(ours)):
        raise WrongAnswers("tokens are suppressed that generate of transformers does not suppress")
    scale = max(1.0, float(theirs[is_open].abs().max()))
    difference = float((ours - theirs)[is_open].abs().max()) / scale
    if difference > (_HALF_TOLERANCE if is_half else _TOLERANCE):
        raise WrongAnswers(
            f"prompts that are answered together get other answers than generate of transformers gives each alone: "
            f"logits differ by {difference:.2g} of the largest"
        )
