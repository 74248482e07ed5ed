"""lay out: makes the arrays that a graph takes from the rows of a run.

Encoder graphs take ``input_ids, attention_mask [, token_type_ids]``; decoder graphs take ``input_ids, position_ids,
branches, ends, response_columns, response_places``. A decoder's row may be a tree row ``[prompt, response 1, ..,
response k]``. In it, the positions of each response continue from the prompt's last one, and a response sees the prompt
and itself: by a mask that the graph makes of the branches or, in a run of one row, over the prompt's keys and values. A
graph of an earlier export takes a mask of each two tokens instead of branches. It is made where the run executes,
because it takes too long for the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardloop.formats.graphs.inputs import (
    GraphInputs,
    as_taken,
    decoder_rows,
    encoder_rows,
    tree_rows,
    tree_tokens,
)
from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.plan import Run, has_response, shares_prompt

_ENCODER = {"input_ids", "attention_mask"}
_BRANCHED_DECODER = {"input_ids", "position_ids", "branches", "ends"}
_DECODER = _BRANCHED_DECODER | {"response_columns", "response_places"}
_MASKED_DECODER = {"input_ids", "position_ids", "mask", "ends"}


@dataclass(frozen=True, slots=True)
class Feeds:
    """A run's input.

    Attributes:
        inputs: The arrays, by the names of the graph's inputs; a decoder's in the newest form (`Signature.given`).
        rows: How many sequences they hold.
        tokens: How many tokens they hold.
        real_tokens: How many of these are not padding. A prompt that rows share counts once.
    """

    inputs: GraphInputs
    rows: int
    tokens: int
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What inputs a graph takes.

    Attributes:
        is_decoder: It takes a decoder's inputs.
        takes_segments: It takes ``token_type_ids``.
        taken: The names of its inputs.
        broadcasts_mask: It takes a mask, as decoders of the earliest exports do, and one mask may stand for all rows.
    """

    is_decoder: bool
    takes_segments: bool
    taken: frozenset[str]
    broadcasts_mask: bool

    @classmethod
    def of(cls, session: Any) -> Signature:
        """Return the signature of an ONNX Runtime session. Raises ValueError if the graph is of neither kind."""
        inputs = {i.name: i.shape for i in session.get_inputs()}
        outputs = sorted(o.name for o in session.get_outputs())
        taken = frozenset(inputs)
        is_encoder = _ENCODER <= taken <= _ENCODER | {"token_type_ids"}
        is_decoder = taken in (_DECODER, _BRANCHED_DECODER, _MASKED_DECODER)
        if "logits" not in outputs or not (is_encoder or is_decoder):
            raise ValueError(f"the graph takes {sorted(taken)} and gives {outputs}")
        broadcasts = "mask" in taken and inputs["mask"][0] != inputs["input_ids"][0]
        return cls(is_decoder, "token_type_ids" in taken, taken, broadcasts)

    @classmethod
    def of_encoder(cls, *, takes_segments: bool) -> Signature:
        """Return the signature of an encoder that is run without a graph."""
        taken = _ENCODER | {"token_type_ids"} if takes_segments else _ENCODER
        return cls(False, takes_segments, frozenset(taken), broadcasts_mask=False)

    @classmethod
    def of_decoder(cls, *, shares_prompts: bool) -> Signature:
        """Return the signature of a decoder that is run without a graph; `shares_prompts` says what it can do."""
        taken = _DECODER if shares_prompts else _BRANCHED_DECODER
        return cls(True, False, frozenset(taken), broadcasts_mask=False)

    @property
    def shares_prompts(self) -> bool:
        """Whether a row of several responses can attend to its prompt's keys and values, without a mask."""
        return "response_columns" in self.taken

    def given(self, feeds: Feeds) -> GraphInputs:
        """Return the arrays of a run as the graph takes them, with a mask for a graph of an earlier export."""
        if not self.is_decoder:
            return feeds.inputs
        inputs = as_taken(feeds.inputs, self.taken)
        if "mask" in inputs and not self.broadcasts_mask:
            rows = len(inputs["input_ids"])
            inputs["mask"] = np.broadcast_to(inputs["mask"], (rows, *inputs["mask"].shape[1:]))
        return inputs


def lay_out(rows: Sequence[Encoded], run: Run, signature: Signature, pad: int, *, shares_always: bool = False) -> Feeds:
    """Return the input of a run.

    Args:
        rows: The sequences, whose indices are the run's items.
        run: The run.
        signature: What is taken.
        pad: The id of the padding token.
        shares_always: A tree row that may attend to its prompt's keys and values does so, whether or not that is
            expected to take less time than a mask.
    """
    if signature.is_decoder and run.kind != "rows":
        groups = [[rows[i] for i in item] for item in run.items]
        shares = signature.shares_prompts and len(groups) == 1 and has_response(groups[0])
        shares = shares and (shares_always or shares_prompt(groups[0]))
        inputs = tree_rows(groups, run.length, pad, shares_prompt=shares)
        real = sum(tree_tokens(group) for group in groups)
        return Feeds(inputs, len(inputs["ends"]), inputs["input_ids"].size, real)
    sequences = [rows[i] for i in run.rows]
    if signature.is_decoder:
        inputs = decoder_rows(sequences, run.length, pad)
    else:
        inputs = encoder_rows(sequences, run.length, pad, has_segments=signature.takes_segments)
    return Feeds(inputs, len(sequences), inputs["input_ids"].size, sum(len(row.ids) for row in sequences))
