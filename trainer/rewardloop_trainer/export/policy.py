"""Writes a policy's version, and tries versions as the worker will load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rewardloop.formats.text import Encoder, Turn
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.loading import load_served
from rewardloop_sampling.proof import STEPS, check_answers
from rewardloop_sampling.sampling import end_ids
from rewardloop_trainer.data.adapters import first_line
from rewardloop_trainer.data.base_text import check_vocabulary
from rewardloop_trainer.export.errors import ExportFailed
from rewardloop_trainer.policy.base_policy import PolicyBase

# Of different lengths, so that the shorter prompts are padded.
_PROBES = ("Hello", "Hello, how are you?", "Count up. " + " ".join(map(str, range(40))))
# In the words of torch ("can't allocate memory") and of the system, which are no MemoryError on a CPU.
_SHORT_MEMORY = "allocate memory"

PARITY = (
    f"the worker gives the first {STEPS} tokens of the answers to {len(_PROBES)} prompts together the scores that "
    "generate of transformers gives them for each prompt alone"
)


def write_policy(
    base: PolicyBase,
    tokenizer: Any,
    encoder: Encoder,
    directory: Path,
    on_unused: Callable[[str], None] = lambda named: None,
) -> None:
    """Write a base as a policy's version, and check that it can be served.

    Args:
        base: The base.
        tokenizer: Its Hugging Face tokenizer.
        encoder: The tokenizer, text format and maximum length of the version.
        directory: Where the files go.
        on_unused: Called with the names of the checkpoint's tensors that the policy does not use, if there are any.

    Raises:
        UnusableBase: The base does not load, or its tokenizer has more tokens than its embedding.
        ExportFailed: The policy worker could not load the version, or would answer otherwise than `generate` of
            transformers.
    """
    model = base.load("auto", on_unused)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    model.save_pretrained(directory, max_shard_size="1TB")
    tokenizer.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    del model  # the version is loaded next, and two models may not fit in memory
    try:
        _try(directory, encoder)
    except Exception as error:  # transformers and torch raise many kinds for a version that does not load or run
        kind = base.config.model_type
        raise ExportFailed(
            f"{base.name}: the policy worker cannot serve this {kind} model: {first_line(error)}"
        ) from error


def prove_policy(directory: Path, encoder: Encoder) -> None:
    """Check that the policy worker can serve a trained version, and answers as `generate` of transformers does.

    It takes one load of the weights, and a few tokens after each of three prompts.

    Args:
        directory: The version's files.
        encoder: The tokenizer, text format and maximum length of the version.

    Raises:
        ExportFailed: If the version does not load, does not run, or answers otherwise.
        MemoryError: If memory is short, as `torch.OutOfMemoryError` on a GPU; this says nothing about the version.
    """
    try:
        _try(directory, encoder)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # as above
        if _SHORT_MEMORY in str(error):
            raise MemoryError(first_line(error)) from error
        raise ExportFailed(f"the policy worker cannot serve the trained policy: {first_line(error)}") from error


def _try(directory: Path, encoder: Encoder) -> None:
    model = load_served(directory, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rules = GenerationRules.of(model, end_ids(model, encoder.format.ends))
    prompts = [encoder.prompt_ids((Turn("user", text),)) for text in _PROBES]
    room = max(1, encoder.max_length - STEPS)
    check_answers(model, [ids[-room:] for ids in prompts], rules, encoder.format.pad)
