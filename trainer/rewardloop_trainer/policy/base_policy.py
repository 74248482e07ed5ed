"""Reads a Hugging Face base as a policy: its configuration, its weights, and adapters merged into them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rewardloop_sampling.generation_rules import GenerationRules, UnsupportedGeneration
from rewardloop_sampling.loading import most_positions
from rewardloop_trainer.data.base_text import UnusableBase

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNBOUNDED = 1_000_000  # tokenizers say "no limit" with a huge number
_UNKNOWN_LENGTH = 512
_NAMED = 3  # tensors that an error names


@dataclass(frozen=True, slots=True)
class PolicyBase:
    """A base that can become a policy.

    Attributes:
        name: The directory or hub id that the user gave.
        weights: The directory or hub id of the whole weights: the name itself, or the base that its adapters change.
        adapters: The directory of PEFT adapters, or None.
        config: The configuration of the weights.
    """

    name: str
    weights: str
    adapters: str | None
    config: Any

    @classmethod
    def of(cls, name: str) -> Self:
        """Read what a directory or hub id is. Raises `UnusableBase`."""
        adapters = name if (Path(name) / _ADAPTER_CONFIG).exists() else None
        weights = _base_of_adapters(name) if adapters else name
        try:
            config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UnusableBase(f"{weights}: its configuration cannot be read: {_line(error)}") from error
        text = config.get_text_config(decoder=True)
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
        has_own = self.adapters is None or (Path(self.adapters) / "tokenizer_config.json").exists()
        return self.name if has_own else self.weights

    def longest_input(self, tokenizer: Any) -> int:
        """Return the most tokens of prompt and answer together; 512 if neither the config nor the tokenizer says.

        A sliding window does not bound them, because a policy reads with the windows of its own layers.
        """
        bounds = [] if (positions := most_positions(self.config)) is None else [positions]
        if tokenizer.model_max_length < _UNBOUNDED:
            bounds.append(int(tokenizer.model_max_length))
        return min(bounds, default=_UNKNOWN_LENGTH)

    def load(self, dtype: torch.dtype | str) -> Any:
        """Load the weights in evaluation mode, on the CPU, with the adapters merged into them.

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
                f"{self.weights}: it does not load as a causal language model: {_line(error)}"
            ) from error
        if missing := sorted(found["missing_keys"]):
            raise UnusableBase(
                f"{self.weights}: it is not a causal language model: {len(missing)} tensors are missing that would be "
                f"drawn at random: {', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}"
            )
        if self.adapters is not None:
            model = self._merged(model)
        try:
            GenerationRules.of(model, ())
        except UnsupportedGeneration as error:
            raise UnusableBase(f"{self.weights}: {error}") from error
        _make_savable(model.generation_config)
        return model.eval()

    def _merged(self, model: Any) -> Any:
        from peft import PeftModel

        try:
            adapted: Any = PeftModel.from_pretrained(model, str(self.adapters))
            with torch.no_grad():
                return adapted.merge_and_unload(safe_merge=True)
        except Exception as error:  # PEFT raises many kinds, AttributeError for adapters that are no change of weights
            raise UnusableBase(
                f"{self.name}: its adapters do not merge into {self.weights}: {_line(error)}; merge them with PEFT "
                "(merge_and_unload) and export the result"
            ) from error


def _base_of_adapters(name: str) -> str:
    """Return the base that a directory of adapters names. Raises `UnusableBase`."""
    try:
        base = json.loads((Path(name) / _ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UnusableBase(f"{name}: {_ADAPTER_CONFIG} cannot be read: {_line(error)}") from error
    if not base:
        raise UnusableBase(f"{name}: {_ADAPTER_CONFIG} names no base (base_model_name_or_path)")
    if not (Path(name) / _ADAPTER_WEIGHTS).exists():
        raise UnusableBase(f"{name}: it has no {_ADAPTER_WEIGHTS}: save the adapters as safetensors")
    return str(base)


def _make_savable(config: Any) -> None:
    """Clear what transformers refuses to save: settings of sampling without do_sample, and of beams without beams.

    Requests say themselves whether to sample, and beams are not supported.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample, config.early_stopping, config.length_penalty = True, None, None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
