"""``rewardloop export --served-as``: a version that a vLLM or SGLang server runs, because no machine here holds it.

The base is read once, to prove what the server must give: the raw logits of the base's own class for a few texts, and
how far they move in the precision that the server computes in. The version holds this, the tokenizer and the text
layout, and no weights.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewardloop.formats.signatures import signer
from rewardloop.formats.store import TOKENIZER, Manifest, ModelStore
from rewardloop.formats.storing.pooling_file import POOLING, PoolingFile, Probe
from rewardloop.formats.text import Encoded, Encoder, Turn
from rewardloop_reward.stored_weights import keep_stored_weights
from rewardloop_reward.trunk import is_decoder, read_config
from rewardloop_trainer.commands.export_notes import said
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress
from rewardloop_trainer.data.base_layout import BaseLayout, decoder_layout
from rewardloop_trainer.data.base_text import UnusableBase, check_vocabulary, load_tokenizer
from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
from rewardloop_trainer.export.errors import ParityError
from rewardloop_trainer.export.own_parity import Floats, classified, compared_texts, largest_difference, load_classifier
from rewardloop_trainer.reward.anchors import ANCHORS, anchors_to_export, check_anchors, write_anchors
from rewardloop_trainer.reward.calibrate import calibrate
from rewardloop_trainer.reward.heads.choice import parse_weights
from rewardloop_trainer.reward.heads.classifier import classifier_heads
from rewardloop_trainer.rounds.publish import code_version

# Kernels of another library round otherwise: by so much of the largest logit in float32, and in half precision by so
# many times what the class itself moves by.
_OTHER_KERNELS, _OTHER_ROUNDING = 1e-3, 3.0
# The logits of the proof must be spread by so many times the tolerance, or another model could give them too.
_LEAST_SPREAD = 4.0
_TOGETHER = 8  # sequences in a batch, which reads the weights once


def export_served_elsewhere(options: ExportSettings, base: str, progress: FileProgress) -> Manifest:
    """Publish a version of the checkpoint in ``base`` that a server elsewhere runs.

    Raises:
        UnusableBase: If the base is no decoder with a sequence classifier, or its tokenizer or layout does not do.
        ParityError: If its logits prove nothing, because they are about equal or not finite.
        UnusableAnchors: If the anchors cannot be read, or too few of them are distinct.
    """
    anchors = anchors_to_export(options.anchors)
    config, tokenizer = read_config(base), load_tokenizer(base)
    check_vocabulary(tokenizer, int(config.get_text_config().vocab_size))
    layout = _layout(options, base, config, tokenizer)
    length = input_length(config, tokenizer, options.max_length, default=DEFAULT_REWARD_LENGTH, setting="--max-length")
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, length.tokens)
    check_anchors(options.anchors, anchors, encoder)
    texts = compared_texts(encoder)
    with keep_stored_weights():
        classifier = _Classifier(load_classifier(base), layout.text_format.pad)
    logits = classifier.logits([row for *_, row in texts])
    heads = classifier_heads(
        base,
        config,
        logits.shape[1],
        parse_weights(options.label_weights),
        is_ensemble=options.heads_are == "ensemble",
        whose="the classifier's",
    )
    weights = np.array(heads.weights or (1 / heads.count,) * heads.count)
    scale = calibrate(lambda rows: classifier.logits(rows).astype(float) @ weights, encoder, anchors)
    classifier.close()
    tolerance, parity = _tolerance(options, base, [row for *_, row in texts], layout.text_format.pad, logits)
    file = PoolingFile(options.served_as, heads.weights, tolerance, _probes(texts, logits))
    notes = {"heads": heads.note, "layout": layout.note, "max_length": length.reason, "anchors": scale.note}
    notes |= {"served": f"a vLLM or SGLang server runs it as {options.served_as!r}", "parity": parity}
    notes |= {"training": "no later version can be trained from it: it holds no weights"}
    manifest = Manifest(
        model=options.model,
        calibration=scale.calibration,
        text_format=layout.text_format.to_json(),
        max_length=encoder.max_length,
        heads=heads.count,
        base=options.base,
        code_version=code_version(),
        notes=said(notes),
        precision=options.precision,
    )

    def write(directory: Path) -> None:
        (directory / POOLING).write_text(file.to_json(), encoding="utf-8")
        tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
        write_anchors(directory / ANCHORS, anchors.anchors)

    return ModelStore(options.store, signer=signer(options.signing_key), watch=progress).publish(manifest, write)


class _Classifier:
    """The base's own class in memory."""

    def __init__(self, model: Any, pad: int) -> None:
        self._model = model
        self._pad = pad
        # A class without a padding token does not find the ends of rows that are padded.
        self._together = 1 if model.config.get_text_config().pad_token_id is None else _TOGETHER

    def logits(self, sequences: Sequence[Encoded]) -> Floats:
        """Return the class's outputs, (sequences, outputs)."""
        return classified(self._model, sequences, self._pad, together=self._together)

    def close(self) -> None:
        """Free the memory."""
        del self._model
        gc.collect()


def _probes(texts: Sequence[tuple[Sequence[Turn], str, Encoded]], logits: Floats) -> tuple[Probe, ...]:
    """Return the proof that the logits (texts, outputs) are."""
    return tuple(
        Probe(
            tuple((turn.role, turn.content) for turn in conversation),
            response,
            tuple(row.ids),
            tuple(map(float, found)),
        )
        for (conversation, response, row), found in zip(texts, logits, strict=True)
    )


def _layout(options: ExportSettings, base: str, config: Any, tokenizer: Any) -> BaseLayout:
    """Return the layout of the base's texts. Raises `UnusableBase` if it is no decoder."""
    if not is_decoder(config):
        raise UnusableBase(
            f"{base}: servers are sent token ids alone, so --served-as takes decoders; export it plainly"
        )
    pad = config.get_text_config().pad_token_id
    # The class reads before a padding token at the end; a server reads the last token, whichever it is.
    unread = pad if isinstance(pad, int) and pad >= 0 else None
    layout = decoder_layout(tokenizer, "read", unread=unread, choice=options.layout)
    return layout if unread is None else BaseLayout(replace(layout.text_format, pad=unread), layout.note)


def _tolerance(
    options: ExportSettings, base: str, sequences: Sequence[Encoded], pad: int, logits: Floats
) -> tuple[float, str]:
    """Return by how much an output of the server may differ from the logits (n, k), and the manifest's note.

    Raises:
        ParityError: If a logit is not finite, or they are spread by too little to prove anything.
    """
    if not np.isfinite(logits).all():
        raise ParityError(f"{base}: its classifier gives logits that are not finite")
    tolerance = _OTHER_KERNELS * max(1.0, float(np.abs(logits).max()))
    about = f"a server's raw logits for {len(logits)} texts must be those of the base's own class"
    if options.precision != "float32":
        rounded = classified(load_classifier(base, getattr(torch, options.precision)), sequences, pad)
        moved = largest_difference(rounded, logits)
        tolerance += _OTHER_ROUNDING * moved
        about += f", which itself moves by up to {moved:.3g} in {options.precision}"
    spread = float(logits.std(0).max())
    if not spread >= _LEAST_SPREAD * tolerance:
        raise ParityError(
            f"{base}: its logits for {len(logits)} different texts are spread by {spread:.3g}, so that a tolerance of "
            f"{tolerance:.3g} would let other models pass: state the precision that the server computes in, or train it"
        )
    return tolerance, f"{about}; they may differ by {tolerance:.3g}"
