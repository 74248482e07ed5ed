"""Gives a directory of adapters the form of a whole checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardloop_reward.trunk import read_config
from rewardloop_trainer.data.adapters import Adapters, first_line
from rewardloop_trainer.data.base_text import UnusableBase

_CLASSES = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


@contextmanager
def merged_base(base: str) -> Iterator[str]:
    """Give the directory of a whole checkpoint: ``base`` itself, or a temporary one into which adapters are merged.

    The tokenizer is that of the adapters' directory if it has one, else that of the base.

    Args:
        base: Directory or hub id of a base; a directory may hold adapters.

    Raises:
        UnusableBase: If the adapters or the base that they name cannot be loaded, or adapters cannot be merged.
    """
    if (adapters := Adapters.of(base)) is None:
        yield base
        return
    with tempfile.TemporaryDirectory() as target:
        try:
            read_config(adapters.base)
        except UnusableBase as error:
            raise UnusableBase(
                f"{base}: the base {adapters.base!r} that adapter_config.json names cannot be read; put it there, or "
                f"change the name: {first_line(error)}"
            ) from error
        try:
            _merge(adapters, Path(target))
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise UnusableBase(f"{base}: its adapters cannot be merged: {first_line(error)}") from error
        yield target


def _merge(adapters: Adapters, target: Path) -> None:
    kind: Any = _CLASSES.get(adapters.task, AutoModel)
    labels = {"num_labels": found} if adapters.task == "SEQ_CLS" and (found := _labels(adapters.weights)) else {}
    whole = kind.from_pretrained(adapters.base, trust_remote_code=False, use_safetensors=True, dtype="auto", **labels)
    adapters.merge(whole).save_pretrained(target)
    AutoTokenizer.from_pretrained(adapters.tokenizer).save_pretrained(target)


def _labels(weights: Path) -> int | None:
    """Rows of the classifier's last layer, which is saved beside the adapters."""
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if name.endswith(("score.weight", "classifier.weight", "classifier.out_proj.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None
