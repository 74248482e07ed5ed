"""Prints what an export chose, each note of its manifest as a sentence."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE

_SENTENCES = {
    "heads": "The score heads are {}.",
    "layout": "The layout of texts is {}.",
    "max_length": "Prompt and response together have at most these tokens: {}.",
    "anchors": "The scale of scores is fixed on these anchors: {}.",
    "parity": "Parity: {}.",
    "training": "Training: {}.",
    "precision": "Precision: {}.",
    "served": "The version is served elsewhere: {}.",
    "outputs": "Outputs of the graph: {}.",
    "unused": "The checkpoint has tensors that a policy does not use: {}.",
    UNTRAINED_HEADS_NOTE: "WARNING: {}.",
}


def sentences(notes: Mapping[str, str]) -> list[str]:
    """Return the notes as sentences, warnings last."""
    found = [_SENTENCES.get(name, f"{name}: {{}}.").format(note) for name, note in notes.items()]
    if notes.get("layout", "").startswith("plain"):
        found.append(
            "WARNING: texts are laid out plainly. If the base was trained on another layout, its scores are others."
        )
    return sorted(found, key=is_warning)


def is_warning(sentence: str) -> bool:
    """Return whether a sentence is a warning."""
    return sentence.startswith("WARNING")


def said(notes: Mapping[str, str]) -> dict[str, str]:
    """Print the manifest's notes, and return them."""
    for sentence in sentences(notes):
        print(f"rewardloop export: {sentence}", file=sys.stderr)
    return dict(notes)
