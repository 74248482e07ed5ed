"""The same answers and weights for this project's losses and for TRL's: token sequences, tensors, settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from support.policy_versions import END, PAD, byte_encoder, byte_tokenizer, small_llama
from torch import Tensor

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.completions import Completion, encode_completions
from rewardloop_trainer.data.preferences import Prompt

PAD_ID = 0
ENCODER = byte_encoder(64)
NEAR = 1e-5

# Prompts and answers of unlike lengths, so that padding, masks and per-token means all matter.
PROMPTS: tuple[Prompt, ...] = tuple((Turn("user", text),) for text in ("hi", "what is it?", "a", "why not"))
BETTER = ("yes, of course", "no", "please do", "it is a longer answer")
WORSE = ("no way", "certainly, it is that", "go", "because")


def tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD, padding_side="left")


def dataset(**columns: Sequence[Any]) -> Any:
    """What a TRL trainer is constructed with; the tensors that are compared are given to its loss directly."""
    from datasets import Dataset

    return Dataset.from_dict(dict(columns))


def arguments(kind: Any, directory: Path, **chosen: Any) -> Any:
    """A TRL configuration on the CPU, in float32, without reports or dropout."""
    defaults = {"output_dir": str(directory), "report_to": "none", "use_cpu": True, "bf16": False, "fp16": False}
    return kind(**defaults, **chosen)


def policies() -> tuple[Any, Any]:
    """A policy and a reference that differ."""
    return small_llama(1), small_llama(0)


def moved(model: Any, seed: int, size: float = 0.01) -> None:
    """Move the weights, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def rows(texts: Iterable[str], prompts: Iterable[Prompt] = PROMPTS) -> list[Completion]:
    found = encode_completions(ENCODER, list(zip(prompts, texts, strict=True)))
    return [row for row in found if row is not None]


def model_inputs(completions: Sequence[Completion]) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``completion_mask``, as TRL's collators make them."""
    longest = max(len(row.ids) for row in completions)
    ids = [[*row.ids, *[PAD_ID] * (longest - len(row.ids))] for row in completions]
    mask = [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in completions]
    said = [[0] * row.start + [1] * row.tokens + [0] * (longest - len(row.ids)) for row in completions]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "completion_mask": torch.tensor(said),
    }


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Tensor, theirs: Tensor, our_model: Any, their_model: Any) -> None:
    """Loss and gradients within 1e-5; parameters go by the same names where both have them."""
    assert abs(ours.item() - theirs.item()) < NEAR, (ours.item(), theirs.item())
    mine, yours = gradients(ours, our_model), gradients(theirs, their_model)
    shared = mine.keys() & yours.keys()
    assert len(shared) > 10
    for name in shared:
        torch.testing.assert_close(mine[name], yours[name], atol=NEAR, rtol=1e-4)
