"""Exports a Hugging Face base, or a directory of adapters merged into one, as a version of the reward model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rewardloop.formats.signatures import signer
from rewardloop.formats.store import MODEL, Manifest, ModelStore
from rewardloop.formats.text import Encoded, Encoder
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop_reward.stored_weights import keep_stored_weights
from rewardloop_trainer.commands.export_notes import said
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress
from rewardloop_trainer.data.base_text import check_vocabulary, load_tokenizer
from rewardloop_trainer.data.files.gate_pairs import read_pairs
from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.parity import (
    PARITY_TOLERANCE,
    export_reward,
    logit_difference,
    padding_shift,
    require_parity,
    torch_logits,
)
from rewardloop_trainer.export.precision import JudgedPairs, Precision, PrecisionChoice, choose_precision, convert
from rewardloop_trainer.export.random_sequences import MOST_TOKENS, random_sequences
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.reward.anchors import ANCHORS, anchors_to_export, check_anchors, write_anchors
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.calibrate import calibrate_model
from rewardloop_trainer.reward.evaluate import pair_margins
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.heads.step_token import with_step_end
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.rounds.publish import code_version

UNTRAINED_HEADS = "the score heads are new and random, so scores mean nothing until a round has trained them"
_PARITY_SEQUENCES = 16
_LARGE_PARAMETERS, _PARITY_TOKENS_OF_LARGE = 500_000_000, 128  # a long sequence would take minutes
_CALIBRATION_PAIRS = 16


def export_reward_base(options: ExportSettings, base: str, progress: FileProgress) -> Manifest:
    """Export the checkpoint in ``base``, which is the options' base, or what its adapters were merged into."""

    anchors = anchors_to_export(options.anchors)
    pairs = read_pairs(options.gate_pairs) if options.gate_pairs else None
    tokenizer = load_tokenizer(base)
    with keep_stored_weights():
        model = RewardModel.from_base(base, options.heads, options.pooling, options.seed, options)
    check_vocabulary(tokenizer, model.vocabulary)
    layout = reward_layout(tokenizer, model, segment_ids=options.segment_ids, choice=options.layout)
    text_format = with_step_end(tokenizer, layout.text_format, options)
    length = input_length(
        model.config, tokenizer, options.max_length, default=DEFAULT_REWARD_LENGTH, setting="--max-length"
    )
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, length.tokens)
    check_anchors(options.anchors, anchors, encoder)
    store = ModelStore(options.store, signer=signer(options.signing_key), watch=progress)
    with store.scratch(options.model) as candidate:
        adapters = linear_modules(model.trunk, options.adapters)
        backend = tokenizer.backend_tokenizer
        watch = partial(progress, "writing weights")
        export_reward(model, backend, text_format, candidate, adapters=adapters, watch=watch)
        torch_side = _torch_side(model, encoder, pairs, backend.get_vocab_size())
        scale = calibrate_model(model, encoder, anchors)
        write_anchors(candidate / ANCHORS, anchors.anchors)
        chosen = {"heads": model.head_note, "layout": layout.note, "max_length": length.reason, "anchors": scale.note}
        if model.has_new_heads:
            chosen[UNTRAINED_HEADS_NOTE] = UNTRAINED_HEADS
        del model  # a large one need not be in memory beside its graph
        gc.collect()
        figures, notes, precision = _proved(options.precision, candidate, encoder, torch_side)
        manifest = Manifest(
            model=options.model,
            metrics=figures,
            calibration=scale.calibration,
            text_format=text_format.to_json(),
            max_length=length.tokens,
            heads=options.heads,
            base=options.base,
            seed=options.seed,
            code_version=code_version(),
            notes=said(chosen | notes),
            precision=precision,
        )

        def write(target: Path) -> None:
            for path in candidate.iterdir():
                path.rename(target / path.name)

        return store.publish(manifest, write)


@dataclass(frozen=True, slots=True)
class _TorchSide:
    """What the torch model says, for the graph to be compared with.

    Attributes:
        sequences: Random sequences.
        logits: Their logits, (sequences, heads).
        pairs: Held-out pairs; None if there are none.
        margins: Their margins, (pairs,).
        stored: The type that the weights are held in.
        shift: How far padding moves a logit in torch itself.
    """

    sequences: Sequence[Encoded]
    logits: npt.NDArray[np.float32]
    pairs: Sequence[Pair] | None
    margins: npt.NDArray[np.float64]
    stored: str
    shift: float


def _torch_side(model: RewardModel, encoder: Encoder, pairs: Sequence[Pair] | None, vocabulary: int) -> _TorchSide:

    is_large = sum(p.numel() for p in model.parameters()) > _LARGE_PARAMETERS
    longest = _PARITY_TOKENS_OF_LARGE if is_large else MOST_TOKENS
    sequences = random_sequences(encoder, vocabulary, _PARITY_SEQUENCES, longest=longest)
    margins = pair_margins(model, encoder, pairs[_CALIBRATION_PAIRS:]) if pairs else np.zeros(0)
    stored = str(next(model.trunk.parameters()).dtype).removeprefix("torch.")
    pad = encoder.format.pad
    logits, shift = torch_logits(model, sequences, pad), padding_shift(model, sequences, pad)
    return _TorchSide(sequences, logits, pairs, margins, stored, shift)


def _proved(
    wanted: Precision, candidate: Path, encoder: Encoder, torch_side: _TorchSide
) -> tuple[dict[str, float], dict[str, str], Precision]:
    """Check the graph against torch, and convert it.

    Returns:
        Figures and notes for the manifest, and the precision that the graph has.

    Raises:
        ParityError: If the float32 graph gives other logits than torch.
    """

    def difference() -> float:
        return logit_difference(candidate / MODEL, torch_side.logits, torch_side.sequences, encoder.format.pad)

    figures = {"gate_parity": require_parity(difference(), torch_side.shift)}
    longest = max(len(s.ids) for s in torch_side.sequences)
    notes = {
        "parity": f"a logit of the float32 graph differs from torch's by at most {figures['gate_parity']:.2g}, on "
        f"{len(torch_side.sequences)} random sequences of at most {longest} tokens"
    }
    if torch_side.stored != "float32":
        notes["parity"] += f"; torch held the weights in {torch_side.stored}, and its layers computed in float32"
    choice, about = _in_precision(wanted, candidate, encoder, torch_side)
    figures |= choice.figures
    if choice.precision == "bfloat16":
        figures["precision_parity"] = difference()
        if figures["precision_parity"] <= PARITY_TOLERANCE:
            about = {"precision": "bfloat16 holds the weights exactly: the logits are those of float32"}
    return figures, {**notes, **about}, choice.precision


def _in_precision(
    wanted: Precision, candidate: Path, encoder: Encoder, torch_side: _TorchSide
) -> tuple[PrecisionChoice, dict[str, str]]:
    """Convert the candidate's graph if its order of the held-out pairs allows it.

    The first pairs calibrate the ranges of activations and are not judged.

    Returns:
        The precision that was chosen with its figures, and the manifest's notes about it.
    """

    if wanted == "float32":
        return PrecisionChoice("float32", {}, ()), {}
    pairs = torch_side.pairs
    if pairs is None:
        convert(candidate / MODEL, wanted, pad=encoder.format.pad)
        choice = PrecisionChoice(wanted, {}, ())
        notes = {"precision": f"{wanted}, not compared with float32: no held-out pairs were given (--gate-pairs)"}
    else:
        seen, judged = pairs[:_CALIBRATION_PAIRS], pairs[_CALIBRATION_PAIRS:]
        calibration = [s for e in encode_records(encoder, seen).examples for s in e.sequences]
        choice = choose_precision(candidate, wanted, JudgedPairs(judged, torch_side.margins, encoder), calibration)
        notes = choice.notes(wanted)
    return choice, notes
