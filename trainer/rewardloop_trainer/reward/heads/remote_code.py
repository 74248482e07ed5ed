"""Runs the code that comes with a base, if the user allows it, to compare a reward model with it.

The reward model itself is made of a trunk of transformers and layers that are read off tensors. So the code runs in the
process that exports, and in no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from rewardloop_trainer.data.base_text import UnusableBase

_HEADED = {"AutoModelForSequenceClassification", "AutoModelForTokenClassification"}


def remote_class(config: Any) -> str | None:
    """Return the reference of the class in the base's own code that computes its score; None if there is none.

    A base may bring code for a class that transformers has too. Transformers' class is then taken, unless the code is
    that of a classifier.
    """
    own: dict[str, Any] = {k: v for k, v in (getattr(config, "auto_map", None) or {}).items() if "AutoModel" in k}
    if not own:
        return None
    name = (config.architectures or [""])[0]
    by_name = [reference for reference in own.values() if str(reference).rpartition(".")[2] == name]
    if hasattr(transformers, name) and not _HEADED & set(own):
        return None
    return str((by_name or list(own.values()))[0])


class RemoteModel:
    """A model of a class in the base's own code."""

    def __init__(self, base: str, reference: str) -> None:
        """Import and load the class, which runs code of the base. Raises `UnusableBase` if it cannot be loaded."""
        self._base, self._reference = base, reference
        try:
            kind: Any = get_class_from_dynamic_module(reference, base)
            self._model = kind.from_pretrained(base, dtype=torch.float32, use_safetensors=True).eval()
        except Exception as error:  # code of any kind may fail in any way
            raise UnusableBase(f"{base}: its own class {reference} cannot be loaded: {error}") from error

    def logits(self, ids: Tensor, labels: int) -> Tensor:
        """Return the labels' logits (labels,) of ids (1, S).

        Raises:
            UnusableBase: If the class fails, or it is not clear which of its outputs they are.
        """
        try:
            with torch.no_grad():
                output = self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception as error:  # as above
            raise UnusableBase(f"{self._base}: its own class {self._reference} fails: {error}") from error
        if isinstance(output, dict) and "logits" in output:
            output = output["logits"]
        values: Sequence[Any] = list(output.values()) if isinstance(output, dict) else output
        values = [values] if isinstance(values, Tensor) else values
        found = [each for each in values if isinstance(each, Tensor) and each.numel() == labels]
        if len(found) != 1:
            raise UnusableBase(
                f"{self._base}: {len(found)} outputs of its own class {self._reference} have {labels} values, not 1: "
                "which is the score is not known"
            )
        return found[0].float().reshape(labels)

    def skips(self, ids: Tensor, pad: int | None, labels: int) -> bool:
        """Whether a padding token at the end of ids (1, S) changes nothing."""
        if pad is None:
            return False
        padded = torch.cat([ids, torch.tensor([[pad]])], 1)
        return torch.allclose(self.logits(ids, labels), self.logits(padded, labels), rtol=0, atol=1e-5)
