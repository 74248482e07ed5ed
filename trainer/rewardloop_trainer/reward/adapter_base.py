"""Merges a directory of the library PEFT, which holds adapters only, into the base that it names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.base_model import read_config

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
    directory = Path(base)
    if not (directory / _CONFIG).exists():
        yield base
        return
    with tempfile.TemporaryDirectory() as target:
        try:
            _merge(directory, Path(target))
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise UnusableBase(f"{base}: its adapters cannot be merged: {_one_line(error)}") from error
        yield target


def _merge(directory: Path, target: Path) -> None:
    from peft import PeftModel

    about = json.loads((directory / _CONFIG).read_text())
    of, task = about.get("base_model_name_or_path"), about.get("task_type")
    if not of:
        raise UnusableBase(f"{_CONFIG} names no base (base_model_name_or_path)")
    try:
        read_config(of)
    except UnusableBase as error:
        raise UnusableBase(
            f"the base {of!r} that {_CONFIG} names cannot be read; put it there, or change the name: {_one_line(error)}"
        ) from error
    if not (directory / _WEIGHTS).exists():
        raise UnusableBase(f"it holds no {_WEIGHTS}; save the adapters as safetensors")
    kind: Any = _CLASSES.get(task, AutoModel)
    labels = {"num_labels": found} if task == "SEQ_CLS" and (found := _labels(directory / _WEIGHTS)) else {}
    whole = kind.from_pretrained(of, trust_remote_code=False, use_safetensors=True, dtype="auto", **labels)
    adapted: Any = PeftModel.from_pretrained(whole, str(directory))
    if not hasattr(adapted, "merge_and_unload"):
        raise UnusableBase(f"adapters of the type {about.get('peft_type')} are not changes of weights")
    with torch.no_grad():
        adapted.merge_and_unload(safe_merge=True).save_pretrained(target)
    has_tokenizer = (directory / "tokenizer_config.json").exists()
    AutoTokenizer.from_pretrained(str(directory) if has_tokenizer else of).save_pretrained(target)


def _labels(weights: Path) -> int | None:
    """Rows of the classifier's last layer, which is saved beside the adapters."""
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if name.endswith(("score.weight", "classifier.weight", "classifier.out_proj.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
