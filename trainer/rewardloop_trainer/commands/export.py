"""``rewardloop export``: makes a version in the store of any Hugging Face base.

Exit status: 0 if the version was published, 1 if it was not, 2 if the flags are not valid.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.export_settings import ExportSettings

if TYPE_CHECKING:
    from rewardloop.formats.store import Manifest
    from rewardloop.formats.text import Encoded, Encoder
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
    from rewardloop_trainer.export.errors import ExportFailed, ParityError
    from rewardloop_trainer.reward.adapter_base import merged_base
    from rewardloop_trainer.reward.anchors import UnusableAnchors

    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        check_base_path(options.base)
        if options.model == "policy":
            manifest = _export_policy(options)
        else:
            with merged_base(options.base) as base:
                manifest = _export_reward(options, base)
    except (
        UnusableBase,
        ParityError,
        ExportFailed,
        UnusableAnchors,
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


def random_sequences(encoder: Encoder, vocabulary: int, count: int, seed: int = 0) -> list[Encoded]:
    """Return sequences of random tokens, on which parity is tried without texts.

    They have 2 tokens to the maximum length (at most 512). Each prompt has two responses.
    """
    from rewardloop.formats.text import Encoded

    chance = random.Random(seed)
    longest = min(encoder.max_length, 512)

    def draw(length: int) -> list[int]:
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        return [i if i != encoder.format.pad else (i + 1) % vocabulary for i in ids]

    found: list[Encoded] = []
    while len(found) < count:
        prompt = draw(chance.randint(1, longest - 1))
        for _ in range(min(2, count - len(found))):
            response = draw(chance.randint(1, longest - len(prompt)))
            types = [0] * len(prompt) + [1] * len(response) if encoder.format.segment_ids else None
            found.append(Encoded(prompt + response, types, False, len(response), len(prompt)))
    return found


def _export_reward(options: ExportSettings, base: str) -> Manifest:
    """Export the checkpoint in ``base``, which is the options' base, or what its adapters were merged into."""
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import MODEL, Manifest, ModelStore
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_text import check_vocabulary, load_tokenizer, longest_input
    from rewardloop_trainer.data.gate_pairs import read_pairs
    from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
    from rewardloop_trainer.export.parity import check_parity, export_reward
    from rewardloop_trainer.learning.linear_modules import linear_modules
    from rewardloop_trainer.reward.anchors import ANCHORS, anchors_to_export, check_anchors, write_anchors
    from rewardloop_trainer.reward.base_layout import reward_layout
    from rewardloop_trainer.reward.calibrate import calibrate
    from rewardloop_trainer.reward.model import RewardModel
    from rewardloop_trainer.rounds.publish import code_version

    anchors = anchors_to_export(options.anchors)
    pairs = read_pairs(options.gate_pairs) if options.gate_pairs else None
    tokenizer = load_tokenizer(base)
    model = RewardModel.from_base(base, options.heads, options.pooling, options.seed, new_heads=options.new_heads)
    check_vocabulary(tokenizer, model.vocabulary)
    layout = reward_layout(tokenizer, model, segment_ids=options.segment_ids, choice=options.layout)
    text_format = layout.text_format
    longest = longest_input(model.config, tokenizer, within_window=False)
    length = input_length(model.config, tokenizer, longest, wanted=options.max_length, default=DEFAULT_REWARD_LENGTH)
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, length.tokens)
    check_anchors(options.anchors, anchors, encoder)
    with tempfile.TemporaryDirectory() as directory:
        candidate = Path(directory)
        adapters = linear_modules(model.trunk, options.adapters)
        export_reward(model, tokenizer.backend_tokenizer, text_format, candidate, adapters=adapters)
        sequences = random_sequences(encoder, tokenizer.backend_tokenizer.get_vocab_size(), _PARITY_SEQUENCES)
        difference = check_parity(candidate / MODEL, model, sequences, text_format.pad)
        choice, notes = _in_precision(options.precision, candidate, model, encoder, pairs)
        heads = f"new, drawn with seed {options.seed}" if model.has_new_heads else "the checkpoint's"
        scale = calibrate(model, encoder, anchors)
        write_anchors(candidate / ANCHORS, anchors.anchors)
        notes = {"heads": heads, "layout": layout.note, "max_length": length.reason, "anchors": scale.note, **notes}
        manifest = Manifest(
            model="reward",
            metrics={"gate_parity": difference, **choice.figures},
            calibration=scale.calibration,
            text_format=text_format.to_json(),
            max_length=length.tokens,
            heads=options.heads,
            base=options.base,
            seed=options.seed,
            code_version=code_version(),
            notes=_said(notes),
            precision=choice.precision,
        )

        def write(target: Path) -> None:
            shutil.copytree(candidate, target, dirs_exist_ok=True)

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
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import Manifest, ModelStore
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_layout import decoder_layout
    from rewardloop_trainer.data.base_text import load_tokenizer
    from rewardloop_trainer.data.input_length import input_length
    from rewardloop_trainer.export.policy import write_policy
    from rewardloop_trainer.policy.base_policy import PolicyBase
    from rewardloop_trainer.rounds.publish import code_version

    base = PolicyBase.of(options.base)
    tokenizer = load_tokenizer(base.tokenizer)
    layout = decoder_layout(tokenizer, "write", choice=options.layout)
    length = input_length(base.config, tokenizer, base.longest_input(tokenizer), wanted=options.max_length)
    manifest = Manifest(
        model="policy",
        text_format=layout.text_format.to_json(),
        max_length=length.tokens,
        base=options.base,
        code_version=code_version(),
        notes={"layout": layout.note, "max_length": length.reason},
    )
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, length.tokens)

    def write(target: Path) -> None:
        write_policy(base, tokenizer, encoder, target)

    published = ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)
    _said(dict(published.notes))
    return published


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
