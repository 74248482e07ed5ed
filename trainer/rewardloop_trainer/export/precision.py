"""Converts a reward version's graph to another precision, if it orders pairs as float32 does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx
import structlog

from rewardloop.formats.graphs.inputs import GraphInputs, as_taken
from rewardloop.formats.store import MODEL
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_trainer.clusters import ClusteredDifference, as_difference, clustered_mean
from rewardloop_trainer.data.length_share import NO_SHARE, LengthShare
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.feeds import decoder_feeds, encoder_feeds, similar_batches
from rewardloop_trainer.export.float16_range import float16_range
from rewardloop_trainer.export.parity import Runs, open_session, run_session
from rewardloop_trainer.export.quantize import quantize
from rewardloop_trainer.export.weights import load_graph, outside_of, write_graph
from rewardloop_trainer.reward.evaluate import Floats, correctness, without_length
from rewardloop_trainer.reward.examples import encode_records

log = structlog.get_logger()

Precision: TypeAlias = Literal["float32", "int8", "float16", "bfloat16"]
LEAST_AGREEMENT = 0.995
LEAST_PAIRS = 200  # with fewer, a single pair would exceed the share that may differ
CALIBRATION_TOKENS = 6_000


class UnconvertibleGraph(ValueError):
    """Raised when a graph has nothing to convert to the precision."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The precision that was chosen.

    Attributes:
        precision: What the graph now has.
        figures: Figures of the comparison, for the manifest.
        reasons: Why it is not the wanted precision; empty if it is.
    """

    precision: Precision
    figures: Mapping[str, float]
    reasons: tuple[str, ...]

    def notes(self, wanted: Precision) -> dict[str, str]:
        """Notes for the manifest; empty if the wanted precision was chosen."""
        return {"precision": f"{wanted} was refused: {'; '.join(self.reasons)}"} if self.reasons else {}


def convert(
    model_path: Path,
    precision: Precision,
    calibration: Sequence[Encoded] = (),
    pad: int = 0,
    target: Path | None = None,
) -> None:
    """Convert a float32 graph. At any moment the target is the old graph or the new one.

    Args:
        model_path: The graph's file.
        precision: int8 for CPUs; float16 for CUDA; bfloat16 stores weights that are cast to float32. The last two keep
            the types of inputs, logits, heads and adapters.
        calibration: Sequences such as the graph will score, for int8; see `quantize`.
        pad: Token id of padding.
        target: The file to write; by default the graph is replaced.

    Raises:
        UnconvertibleGraph: If the graph has nothing to convert.
    """
    if precision == "float32":
        return
    target = target or model_path
    graph = load_graph(model_path)
    if graph is None:
        raise FileNotFoundError(model_path)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as directory:
        if precision == "int8":
            feeds = _calibration_feeds(graph.proto, calibration, pad)
            if not quantize(graph, model_path, Path(directory) / "integers", feeds):
                raise UnconvertibleGraph(f"{model_path}: no linear layer with constant weights")
        else:
            from rewardloop_trainer.export.half_precision import to_bfloat16, to_float16  # slow to import

            if precision == "bfloat16" and not to_bfloat16(graph):
                raise UnconvertibleGraph(f"{model_path}: no matrix to store in bfloat16")
            if precision == "float16":
                graph = to_float16(graph)
        written = Path(directory) / target.name
        write_graph(graph, written)
        _replace(written, target)


def agreement(reference: Floats, converted: Floats) -> float:
    """Share of pairs, from 0 to 1, that both margins (pairs,) order alike; a margin of 0 agrees only with 0."""
    if len(reference) != len(converted):
        raise ValueError("margins differ in number")
    return float((np.sign(reference) == np.sign(converted)).mean()) if len(reference) else float("nan")


def graph_margins(
    model_path: Path,
    pairs: Sequence[Pair],
    encoder: Encoder,
    *,
    length: LengthShare = NO_SHARE,
    adapter: Path | None = None,
) -> Floats:
    """Margins (pairs,) of a graph on the CPU, as `pair_margins` computes them of the torch model."""
    sequences = pair_sequences(encoder, pairs)
    session = open_session(model_path, adapter)
    logits = _logits(session, sequences, encoder.format.pad).mean(1)
    margins: Floats = logits[0::2] - logits[1::2]
    return without_length(margins, encoder, pairs, length)


def pair_sequences(encoder: Encoder, pairs: Sequence[Pair]) -> list[Encoded]:
    """The chosen and the rejected sequence of each pair."""
    return [s for example in encode_records(encoder, pairs).examples for s in example.sequences]


def judge(
    pairs: Sequence[Pair], float32_margins: Floats, converted: Floats, *, tolerance: float = 0.02
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Compare converted margins with those of float32.

    The rules are at least `LEAST_PAIRS` pairs, finite margins, agreement of at least `LEAST_AGREEMENT`, and an accuracy
    that falls by no more than ``tolerance`` beyond noise, as in rule 3 of the reward gate.

    Args:
        pairs: Held-out pairs.
        float32_margins: (pairs,), of the float32 model.
        converted: (pairs,), of the converted graph.
        tolerance: Accuracy that may be lost, from 0 to 1.

    Returns:
        Figures for the manifest, and a reason for each broken rule.
    """
    if len(pairs) < LEAST_PAIRS:
        return {}, (f"{len(pairs)} held-out pairs: agreement is measured on at least {LEAST_PAIRS}",)
    if not np.isfinite(converted).all():
        return {}, (f"{int((~np.isfinite(converted)).sum())} of {len(pairs)} margins are not finite",)
    agrees = agreement(float32_margins, converted)
    difference = accuracy_difference(pairs, converted, float32_margins)
    lower, upper = difference.lower(0.025), difference.upper(0.025)
    figures = {
        "precision_agreement": agrees,
        "precision_pairs": float(len(pairs)),
        "precision_accuracy": float(correctness(converted).mean()),
        "precision_accuracy_difference": difference.mean,
        "precision_accuracy_difference_lower": lower,
        "precision_margin_difference": float(np.sqrt(np.mean((converted - float32_margins) ** 2))),
    }
    reasons = []
    if agrees < LEAST_AGREEMENT:
        reasons.append(f"it orders {agrees:.4f} of {len(pairs)} pairs as float32 does, below {LEAST_AGREEMENT}")
    if difference.mean < 0 and lower < -tolerance:
        reasons.append(
            f"the 95% interval of its accuracy less float32's, [{lower:+.3f}, {upper:+.3f}], "
            f"allows a loss of more than {tolerance:g}"
        )
    return figures, tuple(reasons)


def accuracy_difference(pairs: Sequence[Pair], converted: Floats, float32: Floats) -> ClusteredDifference:
    """Return the accuracy of the converted margins, (pairs,), less that of float32's. Prompts are the clusters."""
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    clusters = np.array([places[pair.prompt] for pair in pairs])
    gains = correctness(converted) - correctness(float32)
    return as_difference(clustered_mean(gains, np.ones(len(pairs)), clusters))


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Held-out pairs with the margins that a precision is compared with.

    Attributes:
        pairs: The pairs.
        float32_margins: (pairs,), from `pair_margins` with the same share of length.
        encoder: The model's tokenizer and text layout.
        length: What calibration takes off a score because of length.
    """

    pairs: Sequence[Pair]
    float32_margins: Floats
    encoder: Encoder
    length: LengthShare = NO_SHARE


def choose_precision(
    version_dir: Path,
    wanted: Precision,
    heldout: JudgedPairs,
    calibration: Sequence[Encoded] = (),
    *,
    tolerance: float = 0.02,
) -> PrecisionChoice:
    """Convert the version's model.onnx if the conversion passes `judge`; otherwise leave it in float32.

    For float16 the activations on the held-out pairs must also keep within its range.

    The result is deterministic, so that a round that was killed repeats it.

    Args:
        version_dir: Directory of the version.
        wanted: The precision to convert to.
        heldout: Pairs to judge the conversion by.
        calibration: Training sequences, none of them of the held-out pairs.
        tolerance: Accuracy that may be lost, from 0 to 1.
    """
    pairs, encoder = heldout.pairs, heldout.encoder
    if wanted == "float32":
        return PrecisionChoice("float32", {}, ())
    if len(pairs) < LEAST_PAIRS:
        return _refused(wanted, *judge(pairs, heldout.float32_margins, heldout.float32_margins))
    path = version_dir / MODEL
    with tempfile.TemporaryDirectory(prefix=".candidate-", dir=version_dir) as directory:
        candidate = Path(directory) / MODEL
        try:
            convert(path, wanted, calibration, encoder.format.pad, candidate)
        except UnconvertibleGraph as error:
            return _refused(wanted, {}, (str(error),))
        ranges: dict[str, float] = {}
        if wanted == "float16":
            ranges, reasons = float16_range(path, candidate, pair_sequences(encoder, pairs), encoder.format.pad)
            if reasons:
                return _refused(wanted, ranges, reasons)
        converted = graph_margins(candidate, pairs, encoder, length=heldout.length)
        figures, reasons = judge(pairs, heldout.float32_margins, converted, tolerance=tolerance)
        figures |= ranges
        if reasons:
            return _refused(wanted, figures, reasons)
        _replace(candidate, path)
    log.info("precision chosen", precision=wanted, **{name: round(value, 4) for name, value in figures.items()})
    return PrecisionChoice(wanted, figures, ())


def _refused(wanted: Precision, figures: Mapping[str, float], reasons: tuple[str, ...]) -> PrecisionChoice:
    log.warning("precision refused", wanted=wanted, reasons=reasons)
    return PrecisionChoice("float32", figures, reasons)


def _replace(written: Path, path: Path) -> None:
    """Move a graph, with its external data if it has any, to the place of another."""
    if outside_of(written).exists():
        os.replace(outside_of(written), outside_of(path))
        os.replace(written, path)
    else:
        os.replace(written, path)
        outside_of(path).unlink(missing_ok=True)


def _calibration_feeds(graph: onnx.ModelProto, sequences: Sequence[Encoded], pad: int) -> list[GraphInputs]:
    """The inputs of each sequence alone, and therefore without padding, up to `CALIBRATION_TOKENS` tokens."""
    taken = {i.name for i in graph.graph.input}
    feeds_of = decoder_feeds if "ends" in taken else encoder_feeds
    feeds, tokens = [], 0
    for sequence in sequences:
        if tokens >= CALIBRATION_TOKENS:
            break
        tokens += len(sequence.ids)
        row = feeds_of([sequence], pad)
        feeds.append(as_taken(row, taken) if "ends" in taken else row)
    return feeds


def _logits(session: Runs, sequences: Sequence[Encoded], pad: int) -> Floats:
    """Logits (n, k), computed in batches of similar length."""
    batches = similar_batches(sequences)
    found = np.concatenate([run_session(session, [sequences[i] for i in batch], pad) for batch in batches])
    logits = np.empty(found.shape, dtype=np.float64)
    logits[[i for batch in batches for i in batch]] = found
    return logits
