"""What a pooling server is asked for raw logits of token ids, and how its reply is read: vLLM's and SGLang's forms.

Both take token ids as they are, and neither adds a template or special tokens to them. vLLM applies a sigmoid or
softmax to a classifier's logits unless ``use_activation`` is false; a release that does not know this field applies it.
SGLang's own ``/classify`` gives the logits. What a server really gives is found by the proof (`prove`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float64]


class NoLogits(Exception):
    """Raised when a reply does not have a line of finite numbers for each row."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """A reply to a request for logits.

    Attributes:
        outputs: The classifier's outputs, (rows, outputs).
        weights: What the server calls the weights that made them; "" if it says nothing of them.
    """

    outputs: Logits
    weights: str = ""


def _unsaid(reply: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is asked.

    Attributes:
        path: Where it is asked for logits.
        body: Makes the request of a model's name and of rows of token ids.
        read: Returns the list of numbers of each row, in order, of the reply's JSON. Raises KeyError, TypeError and
            the like for another form.
        spare_tokens: A row must be shorter by so many tokens than the length that the server states of a model.
        weights: Returns what the reply's JSON calls the weights that made it. Raises as ``read`` does.
    """

    path: str
    body: Callable[[str, Sequence[Sequence[int]]], Mapping[str, Any]]
    read: Callable[[Any], Sequence[Any]]
    spare_tokens: int = 0
    weights: Callable[[Any], str] = _unsaid

    def pooled(self, reply: Any, rows: int) -> Pooled:
        """Return what the reply's JSON says of so many rows. Raises NoLogits."""
        try:
            found = np.array(self.read(reply), dtype=np.float64)
            weights = self.weights(reply)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise NoLogits("its reply has not a list of numbers for each row") from error
        if found.ndim != 2 or len(found) != rows:
            raise NoLogits(f"its reply has numbers of shape {found.shape} for {rows} rows")
        if not np.isfinite(found).all():
            raise NoLogits("its reply has numbers that are not finite")
        return Pooled(found, weights)


def _asked_of_vllm(name: str, rows: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    return {
        "model": name,
        "task": "classify",
        "input": rows,
        "use_activation": False,
        "add_special_tokens": False,
        "encoding_format": "float",
    }


def _told_by_vllm(reply: Any) -> Sequence[Any]:
    entries = sorted(reply["data"], key=lambda entry: entry["index"])
    if [entry["index"] for entry in entries] != list(range(len(entries))):
        raise ValueError("indices that are not those of the rows")
    return [entry["data"] for entry in entries]


def _asked_of_sglang(name: str, rows: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    return {"input_ids": rows}


def _told_by_sglang(reply: Any) -> Sequence[Any]:
    return [entry["embedding"] for entry in reply]


def _weights_of_sglang(reply: Any) -> str:
    """Return the weights' names, which a request may change while the server runs. Older releases do not name them."""
    return ", ".join(sorted({str(entry.get("meta_info", {}).get("weight_version", "")) for entry in reply}))


DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect("/pooling", _asked_of_vllm, _told_by_vllm),
    # It refuses a row of its whole length, though nothing is to be generated after it.
    "sglang": Dialect("/classify", _asked_of_sglang, _told_by_sglang, spare_tokens=1, weights=_weights_of_sglang),
}
