"""``rewardloop export``: any Hugging Face base becomes a version in the store."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardloop.formats.store import Manifest
    from rewardloop.formats.text import Encoded, Encoder
    from rewardloop_trainer.data.preferences import Pair
    from rewardloop_trainer.export.precision import Precision, PrecisionChoice
    from rewardloop_trainer.reward.model import RewardModel

_PARITY_SEQUENCES = 16
_CALIBRATION_PAIRS = 16


def main(argv: Sequence[str]) -> int:
    """Export what the flags name and print the new version. Returns the exit status."""
    options = _parser().parse_args(list(argv))
    # Imported here: the parser above answers --help without torch.
    from transformers.utils.logging import disable_progress_bar

    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop_trainer.data.base_text import UnusableBase
    from rewardloop_trainer.data.gate_pairs import CorruptPairs
    from rewardloop_trainer.export.errors import ExportFailed, ParityError
    from rewardloop_trainer.reward.calibrate import CorruptAnchors

    disable_progress_bar()  # type: ignore[no-untyped-call]
    export = _export_reward if options.model == "reward" else _export_policy
    try:
        manifest = export(options)
    except (
        UnusableBase,
        ParityError,
        ExportFailed,
        CorruptAnchors,
        CorruptPairs,
        StoreError,
        UnusableKey,
        OSError,
    ) as error:
        print(f"rewardloop export: {error}", file=sys.stderr)
        return 1
    print(f"{manifest.model} {manifest.version}  {manifest.digest[:12]}")
    return 0


def random_sequences(encoder: Encoder, vocabulary: int, count: int, seed: int = 0) -> list[Encoded]:
    """Sequences of random tokens, 2 tokens to the maximum length long, two for each prompt: what parity is tried on
    without texts."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rewardloop export", description=__doc__, allow_abbrev=False)
    parser.add_argument("--base", required=True, metavar="DIR_OR_HUB_ID", help="a Hugging Face model, safetensors only")
    parser.add_argument("--store", required=True, metavar="URL", help="the model store: a directory or fsspec URL")
    parser.add_argument("--signing-key", default="", metavar="FILE", help="private ed25519 key (PEM) that signs it")
    parser.add_argument("--model", choices=("reward", "policy"), default="reward")
    parser.add_argument("--max-length", type=_at_least(8), metavar="TOKENS", help="of prompt and response together")
    parser.add_argument("--seed", type=int, default=0, help="draws new score heads")
    reward = parser.add_argument_group("reward models")
    reward.add_argument("--heads", type=_at_least(1), default=4, help="score heads; their spread is the uncertainty")
    reward.add_argument("--pooling", choices=("auto", "mean", "cls"), default="auto", help="of encoders")
    reward.add_argument(
        "--segment-ids",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mark the response with token type 1 (default: for sequence classifiers with segments)",
    )
    reward.add_argument(
        "--adapters",
        choices=("none", "query_value", "attention", "all"),
        default="query_value",
        help="linear layers whose changes later versions can publish as adapters over this graph",
    )
    reward.add_argument(
        "--anchors", type=Path, metavar="FILE", help="JSONL rows {prompt, response} that fix the scale of scores"
    )
    reward.add_argument(
        "--precision",
        choices=("float32", "int8", "float16"),
        default="float32",
        help="of the graph: int8 for CPUs, float16 for CUDA",
    )
    reward.add_argument(
        "--gate-pairs",
        type=Path,
        metavar="FILE",
        help="JSONL rows {prompt, chosen, rejected}: the precision is taken only if it orders these as float32 does",
    )
    return parser


def _at_least(minimum: int) -> type[int]:
    class Bounded(int):
        def __new__(cls, text: str) -> Bounded:
            value = super().__new__(cls, text)
            if value < minimum:
                raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
            return value

    Bounded.__name__ = "integer"
    return Bounded


def _export_reward(options: argparse.Namespace) -> Manifest:
    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import MODEL, Manifest, ModelStore
    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_text import load_tokenizer, longest_input, text_format_of
    from rewardloop_trainer.data.gate_pairs import read_pairs
    from rewardloop_trainer.export.parity import check_parity, export_reward
    from rewardloop_trainer.learning.linear_modules import linear_modules
    from rewardloop_trainer.reward.calibrate import anchor_logits, fit_calibration, read_anchors
    from rewardloop_trainer.reward.model import RewardModel

    anchors = read_anchors(options.anchors) if options.anchors else ()
    pairs = read_pairs(options.gate_pairs) if options.gate_pairs else None
    tokenizer = load_tokenizer(options.base)
    model = RewardModel.from_base(options.base, options.heads, options.pooling, options.seed)
    segment_ids = options.segment_ids
    if segment_ids is None:
        segment_ids = model.neck is not None and getattr(model.config, "type_vocab_size", 0) > 1
    text_format = text_format_of(tokenizer, is_decoder=model.is_decoder, segment_ids=segment_ids)
    longest = longest_input(model.config, tokenizer)
    max_length = min(options.max_length or 512, longest)
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, max_length)
    vocabulary = min(model.config.vocab_size, tokenizer.backend_tokenizer.get_vocab_size())
    with tempfile.TemporaryDirectory() as directory:
        candidate = Path(directory)
        adapters = linear_modules(model.trunk, options.adapters)
        export_reward(model, tokenizer.backend_tokenizer, text_format, candidate, adapters=adapters)
        sequences = random_sequences(encoder, vocabulary, _PARITY_SEQUENCES)
        difference = check_parity(candidate / MODEL, model, sequences, text_format.pad)
        choice, notes = _in_precision(options.precision, candidate, model, encoder, pairs)
        manifest = Manifest(
            model="reward",
            metrics={"gate_parity": difference, **choice.figures},
            calibration=fit_calibration(anchor_logits(model, encoder, anchors)),
            text_format=text_format.to_json(),
            max_length=max_length,
            heads=options.heads,
            base=options.base,
            seed=options.seed,
            code_version=_code_version(),
            notes=notes,
            precision=choice.precision,
        )

        def write(target: Path) -> None:
            shutil.copytree(candidate, target, dirs_exist_ok=True)

        return ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)


def _in_precision(
    wanted: Precision, candidate: Path, model: RewardModel, encoder: Encoder, pairs: Sequence[Pair] | None
) -> tuple[PrecisionChoice, dict[str, str]]:
    """Convert the candidate's graph where the pairs allow it; what came of it, for the manifest and the terminal.

    The first pairs tell how large activations are, and are not judged.
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
    for note in notes.values():
        print(f"rewardloop export: {note}", file=sys.stderr)
    return choice, notes


def _export_policy(options: argparse.Namespace) -> Manifest:
    from transformers import AutoModelForCausalLM

    from rewardloop.formats.signatures import signer
    from rewardloop.formats.store import Manifest, ModelStore
    from rewardloop_trainer.data.base_text import UnusableBase, load_tokenizer, longest_input, text_format_of

    tokenizer = load_tokenizer(options.base)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            options.base, trust_remote_code=False, use_safetensors=True, dtype="auto"
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnusableBase(f"{options.base}: {error}") from error
    text_format = text_format_of(tokenizer, is_decoder=True)
    longest = longest_input(model.config, tokenizer)
    manifest = Manifest(
        model="policy",
        text_format=text_format.to_json(),
        max_length=min(options.max_length or longest, longest),
        base=options.base,
        code_version=_code_version(),
    )

    def write(target: Path) -> None:
        model.save_pretrained(target, max_shard_size="1TB")
        tokenizer.save_pretrained(target)
        model.generation_config.save_pretrained(target)

    return ModelStore(options.store, signer=signer(options.signing_key)).publish(manifest, write)


def _code_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rewardloop")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
