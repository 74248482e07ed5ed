"""Compares a user's own graph with the classifier that it was made of, and with itself in batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

from rewardloop.formats.graphs.inputs import encoder_rows
from rewardloop.formats.text import Encoded, Encoder, RefusedConversation, Turn
from rewardloop_reward.stored_weights import compute_in_float32, loading_dtype
from rewardloop_reward.trunk import some_of
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.export.own_graph import OwnGraph, OwnSession
from rewardloop_trainer.export.random_sequences import random_sequences
from rewardloop_trainer.reward.examples import collate
from rewardloop_trainer.reward.model import RewardModel

Floats = npt.NDArray[np.float32]

_RANDOM = 16
_BATCH_ROWS = 8
_TEXTS = (
    ((Turn("user", "Why is the sky blue?"),), ("Light scatters.", "", "It is not.\n\n" * 20)),
    (
        (Turn("system", "Be brief."), Turn("user", "Grüße, 日本語 🙂")),
        ("Hello!", "def f(x):\n\treturn {'a': [1, 2]}\n"),
    ),
    (
        (Turn("user", "Hello."), Turn("assistant", "Good morning!"), Turn("user", "And now? " * 30)),
        ("It is noon.", " outer white space \n"),
    ),
)


class OwnScores:
    """A graph's logits of sequences.

    Args:
        graph: The graph.
        session: The graph, opened.
        pad: Token id of padding.
    """

    def __init__(self, graph: OwnGraph, session: OwnSession, pad: int) -> None:
        self._has_segments = graph.has_segments
        self._session = session
        self._pad = pad

    def batch(self, sequences: Sequence[Encoded]) -> Floats:
        """Return the logits (n, k) of one run, in which the sequences are as long as the longest."""
        longest = max(len(sequence.ids) for sequence in sequences)
        feeds = encoder_rows(sequences, longest, self._pad, has_segments=self._has_segments)
        return self._session.logits(feeds)

    def alone(self, sequences: Sequence[Encoded]) -> Floats:
        """Return the logits (n, k) of the sequences, each in a run of its own."""
        return np.concatenate([self.batch([sequence]) for sequence in sequences])

    def batched(self, sequences: Sequence[Encoded]) -> Floats:
        """Return the logits (n, k) of the sequences, several in a run."""
        starts = range(0, len(sequences), _BATCH_ROWS)
        return np.concatenate([self.batch(sequences[start : start + _BATCH_ROWS]) for start in starts])


def compared_texts(encoder: Encoder) -> list[tuple[Sequence[Turn], str, Encoded]]:
    """Return the conversations, responses and sequences of those texts for which the layout has a form."""
    return [
        (conversation, response, row)
        for (conversation, responses), rows in zip(_TEXTS, encoder.groups(_TEXTS), strict=True)
        if not isinstance(rows, RefusedConversation)
        for response, row in zip(responses, rows, strict=True)
    ]


def compared_sequences(encoder: Encoder, vocabulary: int) -> list[Encoded]:
    """Return sequences of very different lengths: of texts, and of random tokens."""
    return [*(row for *_, row in compared_texts(encoder)), *random_sequences(encoder, vocabulary, _RANDOM)]


def extreme_sequences(encoder: Encoder, highest: int) -> list[Encoded]:
    """Return a sequence of the highest token id, and one as long as the encoder allows."""
    types = [0] if encoder.format.segment_ids else None
    return [
        Encoded([highest] * length, types * length if types else None, truncated=False)
        for length in (2, encoder.max_length)
    ]


def has_weights(directory: Path) -> bool:
    """Whether a Hugging Face directory holds weights as safetensors."""
    return any(directory.glob("*.safetensors"))


def load_classifier(base: str, dtype: torch.dtype | None = None) -> Any:
    """Load the base's own sequence classifier.

    Args:
        base: A Hugging Face directory or hub id.
        dtype: What it computes in; None for float32, over weights that may stay as they are stored
            (`keep_stored_weights`).

    Raises:
        UnusableBase: If the checkpoint does not load, or lacks weights of the class.
    """
    kind: Any = AutoModelForSequenceClassification
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.ERROR)  # what it would report is judged below
    try:
        held = loading_dtype(base) if dtype is None else dtype
        model, report = kind.from_pretrained(
            base, trust_remote_code=False, use_safetensors=True, dtype=held, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UnusableBase(f"{base}: its classifier does not load: {' '.join(str(error).split())}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    if missing := {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}:
        raise UnusableBase(f"{base}: the checkpoint lacks weights of {type(model).__name__}: {some_of(missing)}")
    if dtype is None and held is not torch.float32:
        compute_in_float32(model)
    return model.eval()


def classified(model: Any, sequences: Sequence[Encoded], pad: int, *, together: int = 1) -> Floats:
    """Return the logits (n, k) that a classifier of `load_classifier` gives, ``together`` sequences in a batch."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(sequences), together):
            ids, mask, types = collate(sequences[start : start + together], pad)
            segments = {} if types is None else {"token_type_ids": types}
            found.append(model(input_ids=ids, attention_mask=mask, **segments).logits.float().numpy())
    return np.concatenate(found)


def class_logits(base: str, sequences: Sequence[Encoded], pad: int) -> Floats:
    """Return the logits (n, k) of the base's own sequence classifier in float32, each sequence alone.

    Raises:
        UnusableBase: If the checkpoint does not load, or lacks weights of the class.
    """
    return classified(load_classifier(base), sequences, pad)


def model_scores(model: RewardModel, sequences: Sequence[Encoded], pad: int) -> Floats:
    """Return the mean logit of each sequence, (n, 1), as a reward model computes it of one sequence alone."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(*collate([s], pad)).mean(1, keepdim=True) for s in sequences]).numpy()


def largest_difference(found: Floats, expected: Floats) -> float:
    """Return the largest absolute difference of two arrays of logits (n, k)."""
    return float(np.abs(found - expected).max()) if np.isfinite(expected).all() else float("inf")
