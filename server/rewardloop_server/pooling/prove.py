"""Compares what a pooling server gives for a version's proof with the logits in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardloop.formats.storing.pooling_file import PoolingFile
from rewardloop.formats.text import Encoder, RefusedConversation, Turn
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.pooling.dialects import Logits

# What a server gives are probabilities if these are so many times nearer than the logits.
_LEAST_CONTRAST = 2.0


class OtherLogits(Exception):
    """Raised when a server gives other outputs for the proof than the proof has."""


def proof_rows(file: PoolingFile, encoder: Encoder, where: str) -> list[list[int]]:
    """Return the token ids of the proof's texts, made as those of any request.

    Args:
        file: The version's pooling file.
        encoder: Turns texts into the version's tokens.
        where: The version, for error texts.

    Raises:
        NotLoadable: They are not the ids in the proof, so that this process would send other tokens than were proven.
    """
    rows = []
    for i, probe in enumerate(file.probes):
        turns = [Turn(role, content) for role, content in probe.conversation]
        try:
            ids = encoder.pair(turns, probe.response).ids
        except RefusedConversation as error:
            raise NotLoadable(f"{where}: its text format does not read text {i + 1} of its proof: {error}") from error
        if tuple(ids) != probe.ids:
            raise NotLoadable(
                f"{where}: text {i + 1} of its proof has {len(ids)} other token ids here than the {len(probe.ids)} in "
                "the proof: export it again with this release"
            )
        rows.append(ids)
    return rows


def check_proof(file: PoolingFile, found: Logits, precision: str) -> float:
    """Return the largest difference of the outputs from the proof.

    Args:
        file: The version's pooling file.
        found: What the server gives for the proof's rows, (probes, outputs).
        precision: What the version states, for error texts.

    Raises:
        OtherLogits: They differ by more than the tolerance.
    """
    expected = np.array([probe.logits for probe in file.probes])
    if found.shape != expected.shape:
        raise OtherLogits(f"it gives {found.shape[1]} outputs for a text, and the classifier has {file.outputs}")
    difference = _largest(found, expected)
    if difference <= file.tolerance:
        return difference
    said = f"its outputs differ from those of the checkpoint's own class by up to {difference:.3g}"
    said += f", above {file.tolerance:.3g}, the tolerance of {precision}"
    apart, name = min((_largest(found, likely), name) for name, likely in _activated(expected))
    if _LEAST_CONTRAST * apart < difference:
        raise OtherLogits(f"{said}: it gives probabilities ({name}) instead of raw logits")
    raise OtherLogits(f"{said}: it serves other weights, or computes in another precision")


def _activated(logits: Logits) -> Sequence[tuple[str, Logits]]:
    """Return what the activations of classifiers make of logits (n, outputs), by their names."""
    sigmoid = 1 / (1 + np.exp(-logits))
    if logits.shape[1] == 1:
        return [("sigmoid", sigmoid)]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return [("softmax", powers / powers.sum(1, keepdims=True)), ("sigmoid", sigmoid)]


def _largest(found: Logits, expected: Logits) -> float:
    """Return the largest absolute difference of two arrays (n, outputs); infinite if a number is not finite."""
    return float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")
