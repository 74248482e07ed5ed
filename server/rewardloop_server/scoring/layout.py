"""lay out: makes the arrays that a graph takes from the rows of a run.

Encoder graphs take ``input_ids, attention_mask [, token_type_ids]``; decoder graphs take ``input_ids, position_ids,
mask, ends``. A decoder's row may be a tree row ``[prompt, response 1, .., response k]``. In it, the positions of each
response continue from the prompt's last one, and the mask lets a response see the prompt and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.plan import Run

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_ENCODER = {"input_ids", "attention_mask"}
_DECODER = {"input_ids", "position_ids", "mask", "ends"}


@dataclass(frozen=True, slots=True)
class Feeds:
    """A run's input.

    Attributes:
        inputs: The arrays, by the names of the graph's inputs.
        rows: How many sequences they hold.
        tokens: How many tokens they hold.
        real_tokens: How many of these are not padding. A prompt that rows share counts once.
    """

    inputs: dict[str, npt.NDArray[Any]]
    rows: int
    tokens: int
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What inputs a graph takes.

    Attributes:
        is_decoder: It takes a decoder's inputs.
        takes_segments: It takes ``token_type_ids``.
        broadcasts_mask: One mask may stand for all rows.
    """

    is_decoder: bool
    takes_segments: bool
    broadcasts_mask: bool

    @classmethod
    def of(cls, session: Any) -> Signature:
        """Return the signature of an ONNX Runtime session. Raises ValueError if the graph is of neither kind."""
        inputs = {i.name: i.shape for i in session.get_inputs()}
        outputs = sorted(o.name for o in session.get_outputs())
        taken = set(inputs)
        is_encoder = _ENCODER <= taken <= _ENCODER | {"token_type_ids"}
        if "logits" not in outputs or not (is_encoder or taken == _DECODER):
            raise ValueError(f"the graph takes {sorted(taken)} and gives {outputs}")
        broadcasts = not is_encoder and inputs["mask"][0] != inputs["input_ids"][0]
        return cls(not is_encoder, "token_type_ids" in taken, broadcasts)


def lay_out(rows: Sequence[Encoded], run: Run, signature: Signature, pad: int) -> Feeds:
    """Return the input of a run, whose items are indices of ``rows``. ``pad`` is the id of the padding token."""
    if not signature.is_decoder:
        return _encoder_rows([rows[i] for i in run.rows], run.length, signature, pad)
    if run.kind == "rows":
        return _decoder_rows([rows[i] for i in run.rows], run.length, signature, pad)
    return _tree_rows([[rows[i] for i in item] for item in run.items], run.length, pad)


def _encoder_rows(rows: Sequence[Encoded], length: int, signature: Signature, pad: int) -> Feeds:
    ids, lengths = _padded(rows, length, pad)
    inputs = {"input_ids": ids, "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64)}
    if signature.takes_segments:
        inputs["token_type_ids"] = segments = np.zeros_like(ids)
        for i, row in enumerate(rows):
            if row.token_type_ids is not None:
                segments[i, : len(row.ids)] = row.token_type_ids
    return Feeds(inputs, len(rows), ids.size, int(lengths.sum()))


def _decoder_rows(rows: Sequence[Encoded], length: int, signature: Signature, pad: int) -> Feeds:
    """Lay rows out under a causal mask. Padding is at the end, so no token sees it."""
    ids, lengths = _padded(rows, length, pad)
    mask = np.tri(length, dtype=np.bool_)[None, None]
    if not signature.broadcasts_mask:
        mask = np.repeat(mask, len(rows), axis=0)
    inputs = {
        "input_ids": ids,
        "position_ids": np.repeat(np.arange(length)[None], len(rows), axis=0),
        "mask": mask,
        "ends": np.arange(len(rows)) * length + lengths - 1,
    }
    return Feeds(inputs, len(rows), ids.size, int(lengths.sum()))


def _tree_rows(items: Sequence[Sequence[Encoded]], length: int, pad: int) -> Feeds:
    ids = np.full((len(items), length), pad, dtype=np.int64)
    positions = np.zeros((len(items), length), dtype=np.int64)
    mask = np.zeros((len(items), 1, length, length), dtype=np.bool_)
    counting = np.arange(length)
    causal = np.tri(max(len(row.ids) for item in items for row in item), dtype=np.bool_)
    ends: list[int] = []
    real = 0
    for i, item in enumerate(items):
        prompt = item[0].prompt_tokens
        ids[i, :prompt] = item[0].ids[:prompt]
        positions[i, :prompt] = counting[:prompt]
        mask[i, 0, :prompt, :prompt] = causal[:prompt, :prompt]
        start = prompt
        for row in item:
            size = len(row.ids) - prompt
            stop = start + size
            ids[i, start:stop] = row.ids[prompt:]
            positions[i, start:stop] = counting[prompt : prompt + size]
            mask[i, 0, start:stop, :prompt] = True
            mask[i, 0, start:stop, start:stop] = causal[:size, :size]
            ends.append(i * length + (stop if size else prompt) - 1)
            start = stop
        # Padding sees one token. Attention over nothing is NaN, which would reach real tokens even with a weight of 0.
        mask[i, 0, start:, 0] = True
        real += start
    inputs = {"input_ids": ids, "position_ids": positions, "mask": mask, "ends": np.array(ends, dtype=np.int64)}
    return Feeds(inputs, len(ends), ids.size, real)


def _padded(rows: Sequence[Encoded], length: int, pad: int) -> tuple[Integers, Integers]:
    """Return ids, (rows, length), padded at the end, and how many tokens of each row are real, (rows,)."""
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
    return ids, np.array([len(row.ids) for row in rows], dtype=np.int64)
