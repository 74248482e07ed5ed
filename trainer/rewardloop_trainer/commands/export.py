"""``rewardloop export``: makes a version in the store of any Hugging Face base.

Exit status: 0 if the version was published, 1 if it was not, 2 if the flags are not valid.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rewardloop.formats.store import Manifest
    from rewardloop.formats.text import Encoded, Encoder
    from rewardloop_trainer.data.preferences import Pair
    from rewardloop_trainer.export.precision import Precision, PrecisionChoice
    from rewardloop_trainer.reward.model import RewardModel

_PARITY_SEQUENCES = 16
_PARITY_TOKENS = 512
_LARGE_PARAMETERS, _PARITY_TOKENS_OF_LARGE = 500_000_000, 128  # a long sequence would take minutes
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
        with FileProgress("rewardloop export") as progress:
            if options.model == "policy":
                manifest = _export_policy(options, progress)
            else:
                with merged_base(options.base) as base:
                    manifest = _export_reward(options, base, progress)
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


def random_sequences(
    encoder: Encoder, vocabulary: int, count: int, seed: int = 0, longest: int = _PARITY_TOKENS
) -> list[Encoded]:
    """Return sequences of random tokens, on which parity is tried without texts.

    They have 2 tokens to the maximum length (at most ``longest``). Each prompt has two responses.
    """
    from rewardloop.formats.text import Encoded

    chance = random.Random(seed)
    longest = min(encoder.max_length, longest)

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


def _export_reward(options: ExportSettings, base: str, progress: FileProgress) -> Manifest:
    """Export the checkpoint in ``base``, which is the options' base, or what its adapters were merged into."""
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import Manifest, ModelStore
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_text import check_vocabulary, load_tokenizer
    from rewardloop_trainer.data.gate_pairs import read_pairs
    from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
    from rewardloop_trainer.export.parity import export_reward
    from rewardloop_trainer.learning.linear_modules import linear_modules
    from rewardloop_trainer.reward.anchors import ANCHORS, anchors_to_export, check_anchors, write_anchors
    from rewardloop_trainer.reward.base_layout import reward_layout
    from rewardloop_trainer.reward.calibrate import calibrate
    from rewardloop_trainer.reward.heads.step_token import with_step_end
    from rewardloop_trainer.reward.model import RewardModel
    from rewardloop_trainer.reward.stored_weights import keep_stored_weights
    from rewardloop_trainer.rounds.publish import code_version

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
    with store.scratch("reward") as candidate:
        adapters = linear_modules(model.trunk, options.adapters)
        backend = tokenizer.backend_tokenizer
        watch = partial(progress, "writing weights")
        export_reward(model, backend, text_format, candidate, adapters=adapters, watch=watch)
        torch_side = _torch_side(model, encoder, pairs, backend.get_vocab_size())
        scale = calibrate(model, encoder, anchors)
        write_anchors(candidate / ANCHORS, anchors.anchors)
        chosen = {"heads": model.head_note, "layout": layout.note, "max_length": length.reason, "anchors": scale.note}
        del model  # a large one need not be in memory beside its graph
        gc.collect()
        figures, notes, precision = _proved(options.precision, candidate, encoder, torch_side)
        manifest = Manifest(
            model="reward",
            metrics=figures,
            calibration=scale.calibration,
            text_format=text_format.to_json(),
            max_length=length.tokens,
            heads=options.heads,
            base=options.base,
            seed=options.seed,
            code_version=code_version(),
            notes=_said(chosen | notes),
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
    import numpy as np

    from rewardloop_trainer.export.parity import padding_shift, torch_logits
    from rewardloop_trainer.reward.evaluate import pair_margins

    is_large = sum(p.numel() for p in model.parameters()) > _LARGE_PARAMETERS
    longest = _PARITY_TOKENS_OF_LARGE if is_large else _PARITY_TOKENS
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
    from rewardloop.formats.store import MODEL
    from rewardloop_trainer.export.parity import PARITY_TOLERANCE, logit_difference, require_parity

    def difference() -> float:
        return logit_difference(candidate / MODEL, torch_side.logits, torch_side.sequences, encoder.format.pad)

    figures = {"gate_parity": require_parity(difference(), torch_side.shift)}
    notes = {}
    if torch_side.stored != "float32":
        longest = max(len(s.ids) for s in torch_side.sequences)
        notes["parity"] = (
            f"of torch with the weights in {torch_side.stored}, as the checkpoint has them, and layers that compute in "
            f"float32; {len(torch_side.sequences)} sequences of at most {longest} tokens"
        )
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
    from rewardloop.formats.store import MODEL
    from rewardloop_trainer.export.precision import JudgedPairs, PrecisionChoice, choose_precision, convert
    from rewardloop_trainer.reward.examples import encode_records

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


def _said(notes: dict[str, str]) -> dict[str, str]:
    """Print the manifest's notes, and return them."""
    for name, note in notes.items():
        print(f"rewardloop export: {name}: {note}", file=sys.stderr)
    return notes


def _export_policy(options: ExportSettings, progress: FileProgress) -> Manifest:
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
    length = input_length(base.config, tokenizer, options.max_length, default=None, setting="--max-length")
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

    store = ModelStore(options.store, signer=signer(options.signing_key), watch=progress)
    published = store.publish(manifest, write)
    _said(dict(published.notes))
    return published


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
