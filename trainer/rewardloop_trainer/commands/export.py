"""``rewardloop export``: makes a version in the store of any Hugging Face base.

Exit status: 0 if the version was published, 1 if it was not, 2 if the flags are not valid.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.export_settings import ExportSettings

if TYPE_CHECKING:
    from rewardloop.formats.store import Manifest
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.preferences import Pair
    from rewardloop_trainer.export.precision import Precision, PrecisionChoice
    from rewardloop_trainer.reward.model import RewardModel

_PARITY_SEQUENCES = 16
_CALIBRATION_PAIRS = 16


def main(argv: Sequence[str]) -> int:
    """Export the base that the flags name and print the new version. Returns the exit status."""
    options = parse(ExportSettings, argv, "rewardloop export")
    # Imported here, so that --help does not load torch.
    from transformers.utils.logging import disable_progress_bar

    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.formats.text import RefusedConversation
    from rewardloop_trainer.commands.base_path import check_base_path
    from rewardloop_trainer.data.base_text import UnusableBase
    from rewardloop_trainer.data.gate_pairs import CorruptPairs
    from rewardloop_trainer.export.errors import ExportFailed, ParityError, UnusableGraph
    from rewardloop_trainer.reward.calibrate import CorruptAnchors

    disable_progress_bar()  # type: ignore[no-untyped-call]
    of_base = _export_reward if options.model == "reward" else _export_policy
    export = of_base if options.onnx is None else _export_onnx
    try:
        check_base_path(options.base)
        manifest = export(options)
    except (
        UnusableBase,
        ParityError,
        ExportFailed,
        UnusableGraph,
        CorruptAnchors,
        CorruptPairs,
        RefusedConversation,
        StoreError,
        UnusableKey,
        OSError,
    ) as error:
        print(f"rewardloop export: {error}", file=sys.stderr)
        return 1
    print(f"{manifest.model} {manifest.version}  {manifest.digest[:12]}")
    return 0


def _export_reward(options: ExportSettings) -> Manifest:
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import MODEL, Manifest, ModelStore
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_text import check_vocabulary, load_tokenizer, longest_input
    from rewardloop_trainer.data.gate_pairs import read_pairs
    from rewardloop_trainer.export.parity import check_parity, export_reward
    from rewardloop_trainer.export.random_sequences import random_sequences
    from rewardloop_trainer.learning.linear_modules import linear_modules
    from rewardloop_trainer.reward.base_layout import reward_layout
    from rewardloop_trainer.reward.calibrate import anchor_logits, fit_calibration, read_anchors
    from rewardloop_trainer.reward.model import RewardModel
    from rewardloop_trainer.rounds.publish import code_version

    anchors = read_anchors(options.anchors) if options.anchors else ()
    pairs = read_pairs(options.gate_pairs) if options.gate_pairs else None
    tokenizer = load_tokenizer(options.base)
    model = RewardModel.from_base(
        options.base, options.heads, options.pooling, options.seed, new_heads=options.new_heads
    )
    check_vocabulary(tokenizer, model.vocabulary)
    layout = reward_layout(tokenizer, model, segment_ids=options.segment_ids, choice=options.layout)
    text_format = layout.text_format
    longest = longest_input(model.config, tokenizer)
    max_length = min(options.max_length or 512, longest)
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, max_length)
    with tempfile.TemporaryDirectory() as directory:
        candidate = Path(directory)
        adapters = linear_modules(model.trunk, options.adapters)
        export_reward(model, tokenizer.backend_tokenizer, text_format, candidate, adapters=adapters)
        sequences = random_sequences(encoder, tokenizer.backend_tokenizer.get_vocab_size(), _PARITY_SEQUENCES)
        difference = check_parity(candidate / MODEL, model, sequences, text_format.pad)
        choice, notes = _in_precision(options.precision, candidate, model, encoder, pairs)
        heads = f"new, drawn with seed {options.seed}" if model.has_new_heads else "the checkpoint's"
        notes = _said({"heads": heads, "layout": layout.note, **notes})
        manifest = Manifest(
            model="reward",
            metrics={"gate_parity": difference, **choice.figures},
            calibration=fit_calibration(anchor_logits(model, encoder, anchors)),
            text_format=text_format.to_json(),
            max_length=max_length,
            heads=options.heads,
            base=options.base,
            seed=options.seed,
            code_version=code_version(),
            notes=notes,
            precision=choice.precision,
        )

        def write(target: Path) -> None:
            shutil.copytree(candidate, target, dirs_exist_ok=True)

        return ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)


def _export_onnx(options: ExportSettings) -> Manifest:
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import ModelStore
    from rewardloop_trainer.commands.export_onnx import own_version

    manifest, write = own_version(options)
    _said(dict(manifest.notes))
    return ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)


def _in_precision(
    wanted: Precision, candidate: Path, model: RewardModel, encoder: Encoder, pairs: Sequence[Pair] | None
) -> tuple[PrecisionChoice, dict[str, str]]:
    """Convert the candidate's graph if its order of the held-out pairs allows it.

    The first pairs calibrate the ranges of activations and are not judged.

    Returns:
        The precision that was chosen with its figures, and the manifest's notes about it.
    """
    from rewardloop.formats.store import MODEL
    from rewardloop_trainer.export.precision import JudgedPairs, PrecisionChoice, choose_precision, convert
    from rewardloop_trainer.reward.evaluate import pair_margins
    from rewardloop_trainer.reward.examples import encode_records

    if wanted == "float32":
        return PrecisionChoice("float32", {}, ()), {}
    if pairs is None:
        convert(candidate / MODEL, wanted, pad=encoder.format.pad)
        choice = PrecisionChoice(wanted, {}, ())
        notes = {"precision": f"{wanted}, not compared with float32: no held-out pairs were given (--gate-pairs)"}
    else:
        seen, judged = pairs[:_CALIBRATION_PAIRS], pairs[_CALIBRATION_PAIRS:]
        calibration = [s for e in encode_records(encoder, seen).examples for s in e.sequences]
        margins = pair_margins(model, encoder, judged)
        choice = choose_precision(candidate, wanted, JudgedPairs(judged, margins, encoder), calibration)
        notes = choice.notes(wanted)
    return choice, notes


def _said(notes: dict[str, str]) -> dict[str, str]:
    """Print the manifest's notes, and return them."""
    for name, note in notes.items():
        print(f"rewardloop export: {name}: {note}", file=sys.stderr)
    return notes


def _export_policy(options: ExportSettings) -> Manifest:
    from transformers import AutoModelForCausalLM

    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import Manifest, ModelStore
    from rewardloop_trainer.data.base_layout import decoder_layout
    from rewardloop_trainer.data.base_text import UnusableBase, check_vocabulary, load_tokenizer, longest_input
    from rewardloop_trainer.rounds.publish import code_version

    tokenizer = load_tokenizer(options.base)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            options.base, trust_remote_code=False, use_safetensors=True, dtype="auto"
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnusableBase(f"{options.base}: {error}") from error
    check_vocabulary(tokenizer, cast(Any, model).get_input_embeddings().num_embeddings)
    layout = decoder_layout(tokenizer, "write", choice=options.layout)
    longest = longest_input(model.config, tokenizer)
    manifest = Manifest(
        model="policy",
        text_format=layout.text_format.to_json(),
        max_length=min(options.max_length or longest, longest),
        base=options.base,
        code_version=code_version(),
        notes=_said({"layout": layout.note}),
    )

    def write(target: Path) -> None:
        model.save_pretrained(target, max_shard_size="1TB")
        tokenizer.save_pretrained(target)
        model.generation_config.save_pretrained(target)

    return ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
