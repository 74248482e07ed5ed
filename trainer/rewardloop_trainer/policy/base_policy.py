"""Reads a Hugging Face base as a policy: its configuration, its weights, and adapters merged into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rewardloop_sampling.generation_rules import GenerationRules, UnsupportedGeneration
from rewardloop_trainer.data.adapters import Adapters, first_line
from rewardloop_trainer.data.base_text import UnusableBase

_NAMED = 3  # tensors that an error names


@dataclass(frozen=True, slots=True)
class PolicyBase:
    """A base that can become a policy.

    Attributes:
        name: The directory or hub id that the user gave.
        weights: The directory or hub id of the whole weights: the name itself, or the base that its adapters change.
        adapters: The PEFT adapters that change them, or None.
        config: The configuration of the weights.
    """

    name: str
    weights: str
    adapters: Adapters | None
    config: Any

    @classmethod
    def of(cls, name: str) -> Self:
        """Read what a directory or hub id is. Raises `UnusableBase`."""
        adapters = Adapters.of(name)
        weights = adapters.base if adapters else name
        try:
            config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UnusableBase(f"{weights}: its configuration cannot be read: {first_line(error)}") from error
        text = config.get_text_config(decoder=True)
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            raise UnusableBase(
                f"{weights}: {config.model_type} is no causal language model, so it cannot write answers: name a "
                "decoder such as Llama or Qwen, or export it as a reward model (--model reward)"
            )
        if quantisation := getattr(config, "quantization_config", None):
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
            raise UnusableBase(
                f"{weights}: its weights are quantised ({getattr(method, 'value', method)}), which is not supported: "
                "name the checkpoint in float32, bfloat16 or float16 that they were made from"
            )
        pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
        if pad is not None and rows is not None and pad >= rows:
            raise UnusableBase(
                f"{weights}: config.json names {pad} as pad_token_id, beyond the {rows} rows of the embedding: name a "
                "token that it has, such as the end-of-sequence token"
            )
        return cls(name, weights, adapters, config)

    @property
    def tokenizer(self) -> str:
        """The directory or hub id of the tokenizer: that of the adapters if they have one."""
        return self.adapters.tokenizer if self.adapters else self.name

    def load(self, dtype: torch.dtype | str, on_unused: Callable[[str], None] = lambda named: None) -> Any:
        """Load the weights in evaluation mode, on the CPU, with the adapters merged into them.

        Args:
            dtype: The type of the weights; "auto" is the checkpoint's own.
            on_unused: Called with the names of the checkpoint's tensors that the model does not use, if there are any.

        Raises:
            UnusableBase: They do not load, tensors that the model needs are missing, or the generation config asks for
                what is not supported.
        """
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.weights, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            model, found = loaded
        except Exception as error:  # transformers raises many kinds for a base that it does not read
            raise UnusableBase(
                f"{self.weights}: it does not load as a causal language model: {first_line(error)}"
            ) from error
        if missing := sorted(found["missing_keys"]):
            raise UnusableBase(
                f"{self.weights}: it is not a causal language model: {len(missing)} tensors are missing that would be "
                f"drawn at random: {_some_of(missing)}"
            )
        if unused := sorted(found["unexpected_keys"]):
            on_unused(_some_of(unused))
        if self.adapters is not None:
            model = self.adapters.merge(model)
        try:
            GenerationRules.of(model, ())
        except UnsupportedGeneration as error:
            raise UnusableBase(f"{self.weights}: {error}") from error
        _make_savable(model.generation_config)
        return model.eval()


def _some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _make_savable(config: Any) -> None:
    """Clear what transformers refuses to save: settings of sampling without do_sample, and of beams without beams.

    Requests say themselves whether to sample, and beams are not supported.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample, config.early_stopping, config.length_penalty = True, None, None
