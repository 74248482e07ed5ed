"""lay out: a run's rows as the arrays that the graph takes.

Encoder graphs take ``input_ids, attention_mask [, token_type_ids]``; decoder graphs ``input_ids, position_ids, mask,
ends``. A decoder's row may be a tree row ``[prompt, response 1, .., response k]``: the positions of each response go
on where the prompt's end, and the mask lets it see the prompt and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rewardloop.formats.graph_inputs import decoder_rows, encoder_rows, tree_rows, tree_tokens
from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.plan import Run

_ENCODER = {"input_ids", "attention_mask"}
_DECODER = {"input_ids", "position_ids", "mask", "ends"}


@dataclass(frozen=True, slots=True)
class Feeds:
    """A run's input, and what it holds: ``rows`` sequences in ``tokens`` tokens, of which ``real_tokens`` are not
    padding (a prompt that rows share counts once)."""

    inputs: dict[str, npt.NDArray[Any]]
    rows: int
    tokens: int
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What a graph takes. ``broadcasts_mask``: one mask may stand for all rows."""

    is_decoder: bool
    takes_segments: bool
    broadcasts_mask: bool

    @classmethod
    def of(cls, session: Any) -> Signature:
        """Of an ONNX Runtime session. Raises ValueError when the graph is of neither kind."""
        inputs = {i.name: i.shape for i in session.get_inputs()}
        outputs = sorted(o.name for o in session.get_outputs())
        taken = set(inputs)
        is_encoder = _ENCODER <= taken <= _ENCODER | {"token_type_ids"}
        if "logits" not in outputs or not (is_encoder or taken == _DECODER):
            raise ValueError(f"the graph takes {sorted(taken)} and gives {outputs}")
        broadcasts = not is_encoder and inputs["mask"][0] != inputs["input_ids"][0]
        return cls(not is_encoder, "token_type_ids" in taken, broadcasts)


def lay_out(rows: Sequence[Encoded], run: Run, signature: Signature, pad: int) -> Feeds:
    """The input of ``run``, whose items index ``rows``."""
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
