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

from rewardloop.formats.graphs.inputs import decoder_rows, encoder_rows, tree_rows, tree_tokens
from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.plan import Run

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
    if signature.is_decoder and run.kind != "rows":
        groups = [[rows[i] for i in item] for item in run.items]
        inputs = tree_rows(groups, run.length, pad)
        real = sum(tree_tokens(group) for group in groups)
        return Feeds(inputs, len(inputs["ends"]), inputs["input_ids"].size, real)
    sequences = [rows[i] for i in run.rows]
    if signature.is_decoder:
        inputs = decoder_rows(sequences, run.length, pad)
        if not signature.broadcasts_mask:
            inputs["mask"] = np.repeat(inputs["mask"], len(sequences), axis=0)
    else:
        inputs = encoder_rows(sequences, run.length, pad, has_segments=signature.takes_segments)
    return Feeds(inputs, len(sequences), inputs["input_ids"].size, sum(len(row.ids) for row in sequences))
