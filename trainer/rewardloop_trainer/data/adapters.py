"""Directories of the library PEFT, which hold adapters only and name the base that these change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from rewardloop_trainer.data.base_text import UnusableBase

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of one directory.

    Attributes:
        directory: Where they are.
        base: Directory or hub id of the base that they change.
        task: PEFT's name of the task that they were trained for, such as SEQ_CLS; empty if they name none.
        kind: PEFT's name of their kind, such as LORA.
    """

    directory: Path
    base: str
    task: str
    kind: str

    @classmethod
    def of(cls, base: str) -> Self | None:
        """Read what a directory or hub id says; None if it is no directory of adapters. Raises `UnusableBase`."""
        directory = Path(base)
        if not (directory / _CONFIG).exists():
            return None
        try:
            about = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
            of = about.get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError) as error:
            raise UnusableBase(f"{base}: {_CONFIG} cannot be read: {first_line(error)}") from error
        if not of:
            raise UnusableBase(f"{base}: {_CONFIG} names no base (base_model_name_or_path)")
        if not (directory / _WEIGHTS).exists():
            raise UnusableBase(f"{base}: it holds no {_WEIGHTS}: save the adapters as safetensors")
        return cls(directory, str(of), str(about.get("task_type") or ""), str(about.get("peft_type") or ""))

    @property
    def weights(self) -> Path:
        """The file of the adapters' weights."""
        return self.directory / _WEIGHTS

    @property
    def tokenizer(self) -> str:
        """The directory or hub id of the tokenizer: the adapters' own, or that of their base."""
        has_own = (self.directory / "tokenizer_config.json").exists()
        return str(self.directory) if has_own else self.base

    def merge(self, model: Any) -> Any:
        """Merge the adapters into a model of their base, and return it. Raises `UnusableBase`."""
        from peft import PeftModel

        try:
            adapted: Any = PeftModel.from_pretrained(model, str(self.directory))
            if not hasattr(adapted, "merge_and_unload"):
                raise UnusableBase(f"adapters of the kind {self.kind} are not changes of weights")
            with torch.no_grad():
                return adapted.merge_and_unload(safe_merge=True)
        except Exception as error:  # PEFT raises many kinds, AttributeError for adapters that are no change of weights
            raise UnusableBase(
                f"{self.directory}: its adapters do not merge into {self.base}: {first_line(error)}; merge them with "
                "PEFT (merge_and_unload) and export the result"
            ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
