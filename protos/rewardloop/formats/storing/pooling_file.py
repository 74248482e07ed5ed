"""The file that a version holds instead of a graph if a server elsewhere runs it, such as vLLM or SGLang.

It names the model on that server, and it holds proof: texts with their token ids and the logits that the checkpoint's
own Hugging Face class gives them. A server that does not give the same logits is not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POOLING = "pooling.json"

_FORM = 1
# The only kind of output that there is: what a sequence classifier computes before any sigmoid or softmax.
_OUTPUT = "raw logits"
_MOST_OUTPUTS = 4096


class BadPoolingFile(ValueError):
    """Raised for a text that is no such file."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A text with what the checkpoint's own class makes of it.

    Attributes:
        conversation: Role and content of each turn.
        response: The response to it.
        ids: The token ids of both, as the version's tokenizer and text format give them.
        logits: The raw outputs of the class, (outputs,).
    """

    conversation: tuple[tuple[str, str], ...]
    response: str
    ids: tuple[int, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PoolingFile:
    """The model that a server elsewhere must serve, with the proof that it does.

    Attributes:
        name: The model's name on that server.
        weights: How its outputs add up to one logit, (outputs,); None if each output is a head.
        tolerance: Largest difference of an output from the proof that the version's precision explains.
        probes: The proof; at least one.
    """

    name: str
    weights: tuple[float, ...] | None
    tolerance: float
    probes: tuple[Probe, ...]

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return len(self.probes[0].logits)

    @property
    def heads(self) -> int:
        """How many logits the version has for each row."""
        return self.outputs if self.weights is None else 1

    def to_json(self) -> str:
        """Return the file's text."""
        probes = [
            {
                "conversation": [{"role": role, "content": content} for role, content in probe.conversation],
                "response": probe.response,
                "ids": list(probe.ids),
                "logits": list(probe.logits),
            }
            for probe in self.probes
        ]
        weights = None if self.weights is None else list(self.weights)
        said = {"form": _FORM, "name": self.name, "output": _OUTPUT, "weights": weights, "tolerance": self.tolerance}
        return json.dumps({**said, "probes": probes}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PoolingFile:
        """Read the file's text. Raises `BadPoolingFile` for any other text, also for one with unknown keys."""
        try:
            raw = _object(json.loads(text), "form", "name", "output", "weights", "tolerance", "probes")
            if raw["form"] != _FORM:
                raise BadPoolingFile(f"its form is {raw['form']!r}, and {_FORM} is the only one that is known")
            if raw["output"] != _OUTPUT:
                raise BadPoolingFile(f"its output is {raw['output']!r}, and {_OUTPUT!r} is the only one that is known")
            weights = None if raw["weights"] is None else _numbers(raw["weights"], "weights")
            (tolerance,) = _numbers([raw["tolerance"]], "tolerance")
            probes = tuple(_probe(each) for each in _list(raw["probes"], "probes"))
            read = cls(_text(raw["name"], "name"), weights, tolerance, probes)
        except (ValueError, OverflowError, RecursionError) as error:
            raise BadPoolingFile(f"{POOLING} cannot be read: {ascii(str(error))[1:-1]}") from error
        if not (read.name and read.tolerance > 0 and read.probes and 0 < read.outputs <= _MOST_OUTPUTS):
            raise BadPoolingFile(f"{POOLING} lacks a name, a tolerance above 0, or probes with logits")
        if any(len(probe.logits) != read.outputs or not probe.ids for probe in read.probes):
            raise BadPoolingFile(f"{POOLING}: its probes have no ids, or differ in the number of logits")
        if read.weights is not None and len(read.weights) != read.outputs:
            raise BadPoolingFile(f"{POOLING} has {len(read.weights)} weights for {read.outputs} outputs")
        return read


def _probe(raw: object) -> Probe:
    read = _object(raw, "conversation", "response", "ids", "logits")
    turns = [_object(turn, "role", "content") for turn in _list(read["conversation"], "conversation")]
    conversation = tuple((_text(turn["role"], "role"), _text(turn["content"], "content")) for turn in turns)
    ids = _list(read["ids"], "ids")
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise BadPoolingFile("ids are not whole numbers from 0 on")
    return Probe(conversation, _text(read["response"], "response"), tuple(ids), _numbers(read["logits"], "logits"))


def _object(raw: object, *keys: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise BadPoolingFile(f"an object does not have the keys {', '.join(keys)} and no others")
    return raw


def _list(raw: object, name: str) -> Sequence[Any]:
    if not isinstance(raw, list):
        raise BadPoolingFile(f"{name} is no list")
    return raw


def _text(raw: object, name: str) -> str:
    if not isinstance(raw, str):
        raise BadPoolingFile(f"{name} is no text")
    return raw


def _numbers(raw: object, name: str) -> tuple[float, ...]:
    numbers = _list(raw, name)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise BadPoolingFile(f"{name}: not numbers")
    if not all(math.isfinite(each) for each in numbers):
        raise BadPoolingFile(f"{name}: not finite numbers")
    return tuple(float(each) for each in numbers)
