"""``rewardloop export --onnx``: a version of a user's own ONNX graph, under the checks of every other export.

The graph is read, its texts get the layout of the base's tokenizer, and its scores are compared with those of the
base's own class. If the base has weights that a round can start from, the version holds them beside the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from rewardloop.formats.signatures import signer
from rewardloop.formats.store import TOKENIZER, TORCH, Manifest, ModelStore
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_reward.trunk import read_config
from rewardloop_trainer.commands.export_notes import said
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress
from rewardloop_trainer.data.base_layout import BaseLayout, decoder_layout, encoder_layout
from rewardloop_trainer.data.base_text import UnusableBase, check_vocabulary, load_tokenizer
from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
from rewardloop_trainer.export.errors import ParityError, UnusableGraph
from rewardloop_trainer.export.own_graph import HALVES, OwnGraph, read_own_graph
from rewardloop_trainer.export.own_parity import (
    Floats,
    OwnScores,
    class_logits,
    compared_sequences,
    extreme_sequences,
    has_weights,
    largest_difference,
    model_scores,
)
from rewardloop_trainer.export.parity import PARITY_TOLERANCE
from rewardloop_trainer.reward.anchors import ANCHORS, anchors_to_export, check_anchors, write_anchors
from rewardloop_trainer.reward.calibrate import calibrate
from rewardloop_trainer.reward.heads.choice import parse_weights
from rewardloop_trainer.reward.heads.classifier import ClassifierHeads, classifier_heads
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.rounds.publish import code_version

_HALF_TOLERANCE = 1e-2  # of a row alone and in a batch, in a graph of 16-bit floats


def export_own_graph(options: ExportSettings, progress: FileProgress) -> Manifest:
    """Publish a version of the graph that ``options.onnx`` names. Raises as `own_version` does, and `StoreError`."""
    manifest, write = own_version(options)
    said(dict(manifest.notes))
    return ModelStore(options.store, signer=signer(options.signing_key), watch=progress).publish(manifest, write)


def own_version(options: ExportSettings) -> tuple[Manifest, Callable[[Path], None]]:
    """Check the graph that ``options.onnx`` names.

    Returns:
        The manifest of its version, and what writes the version's files into a directory.

    Raises:
        UnusableGraph: If the graph cannot be served.
        UnsafeVersion: If it asks for files outside its folder, or for operators that ONNX Runtime does not have.
        UnusableBase: If the base's configuration or tokenizer does not load, or no layout gives its texts.
        ParityError: If the graph's scores are not those of the base, or could not be compared.
        UnusableAnchors: If the anchors cannot be read, or too few of them are distinct.
    """
    path, base = Path(str(options.onnx)), options.base
    if not Path(base).is_dir():
        raise UnusableBase(f"{base}: --onnx needs a directory with the configuration and the tokenizer of the graph")
    if not path.is_file():
        raise UnusableGraph(f"{path}: there is no such file")
    anchors = anchors_to_export(options.anchors)
    graph, config, tokenizer = read_own_graph(path), read_config(base), load_tokenizer(base)
    check_vocabulary(tokenizer, graph.vocabulary or int(config.get_text_config().vocab_size))
    layout = _layout(options, graph, config, tokenizer)
    length = input_length(config, tokenizer, options.max_length, default=DEFAULT_REWARD_LENGTH, setting="--max-length")
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, length.tokens)
    check_anchors(options.anchors, anchors, encoder)
    scores = OwnScores(graph, graph.session(), layout.text_format.pad)
    highest = max(tokenizer.get_vocab().values())
    for sequence in extreme_sequences(encoder, highest):
        scores.batch([sequence])
    sequences = compared_sequences(encoder, tokenizer.backend_tokenizer.get_vocab_size())
    logits = _checked_batches(path, graph, scores, sequences)
    expected = _of_class(options, sequences, layout.text_format.pad)
    parity, figures = _compared(options, graph, logits, expected)
    heads = classifier_heads(
        base,
        config,
        logits.shape[1],
        parse_weights(options.label_weights),
        is_ensemble=options.heads_are == "ensemble",
        whose="the graph's",
    )
    model, training = _start_of_training(options, heads, sequences, expected, layout.text_format.pad)
    if heads.weights is not None:
        graph = graph.combined(heads.weights)
        scores = OwnScores(graph, graph.session(), layout.text_format.pad)
    scale = calibrate(lambda rows: scores.alone(rows).mean(1).astype(float), encoder, anchors)
    notes = {"heads": heads.note, "layout": layout.note, "max_length": length.reason, "anchors": scale.note}
    notes |= {"parity": parity, "training": training}
    if graph.dropped:
        notes["outputs"] = f"left out: {', '.join(graph.dropped)}"
    manifest = Manifest(
        model=options.model,
        metrics=figures,
        calibration=scale.calibration,
        text_format=layout.text_format.to_json(),
        max_length=encoder.max_length,
        heads=heads.count,
        base=base,
        code_version=code_version(),
        notes=notes,
        precision=graph.precision,
    )

    def write(directory: Path) -> None:
        graph.write(directory)
        tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
        write_anchors(directory / ANCHORS, anchors.anchors)
        if model is not None:
            (directory / TORCH).mkdir()
            model.save(directory / TORCH)

    return manifest, write


def _layout(options: ExportSettings, graph: OwnGraph, config: Any, tokenizer: Any) -> BaseLayout:
    """Return the layout of the graph's texts, padded as its class expects."""
    read = config.get_text_config()
    kind = config.model_type
    pad = read.pad_token_id if isinstance(read.pad_token_id, int) and read.pad_token_id >= 0 else None
    if config.is_encoder_decoder or kind not in {
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }:
        raise UnusableBase(
            f"{kind!r} is neither a known encoder nor a known decoder, so the layout of its texts is not known"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        if graph.has_positions:
            raise UnusableGraph(
                f"{options.onnx} takes position_ids, which {kind} counts itself: export it without this input"
            )
        has_segments = int(getattr(read, "type_vocab_size", 0)) > 1
        marks_pairs = 1 in tokenizer("a", "b").get("token_type_ids", ())
        wanted = options.segment_ids
        segments = graph.has_segments and has_segments and marks_pairs if wanted is None else wanted
        if segments and not graph.has_segments:
            raise UnusableGraph(f"{options.onnx} takes no token_type_ids: it cannot mark the response")
        layout = encoder_layout(
            tokenizer, segment_ids=segments, has_segments=has_segments, is_trained=True, choice=options.layout
        )
    else:
        layout = decoder_layout(tokenizer, "read", unread=pad, choice=options.layout)
    if pad is None:
        return layout
    return BaseLayout(replace(layout.text_format, pad=pad), layout.note)


def _checked_batches(path: Path, graph: OwnGraph, scores: OwnScores, sequences: Sequence[Encoded]) -> Floats:
    """Return the logits (n, k) of the sequences, each alone, after checking that batches give the same."""
    alone = scores.alone(sequences)
    tolerance = _HALF_TOLERANCE if graph.precision in HALVES else PARITY_TOLERANCE
    difference = largest_difference(scores.batched(sequences), alone)
    if not difference <= tolerance:
        cause = (
            "the exporter fixed a size, or the graph pools by another pad_token_id than the config's: export it again"
        )
        if graph.quantizes_runs:
            cause = "it quantises all rows of a run together: quantise it statically, or not at all"
        raise UnusableGraph(
            f"{path}: padding and the rows beside a sequence change its score by {difference:.3g}, above "
            f"{tolerance:g}; {cause}"
        )
    return alone


def _of_class(options: ExportSettings, sequences: Sequence[Encoded], pad: int) -> Floats | None:
    """Return the logits (n, k) of the base's own class; None if it has no weights and the user accepts that."""
    if has_weights(Path(options.base)):
        return class_logits(options.base, sequences, pad)
    if options.parity == "unverified":
        return None
    raise ParityError(
        f"{options.base} has no safetensors weights to compare the graph with; put them there, or accept this with "
        "--parity unverified"
    )


def _compared(
    options: ExportSettings, graph: OwnGraph, logits: Floats, expected: Floats | None
) -> tuple[str, dict[str, float]]:
    """Compare the graph's logits (n, k) with the expected ones.

    Returns:
        The manifest's note, and its figures.
    """
    if expected is None:
        return "not compared: the base has no weights", {}
    if expected.shape != logits.shape:
        raise ParityError(f"the graph gives {logits.shape[1]} scores, and its base has {expected.shape[1]} labels")
    difference = largest_difference(logits, expected)
    found = f"a score of the {graph.precision} graph differs from the base's own class by at most {difference:.3g}"
    if difference <= PARITY_TOLERANCE:
        return f"{found}, on {len(logits)} sequences", {"gate_parity": difference}
    if graph.precision == "float32":
        raise ParityError(f"{found}, above {PARITY_TOLERANCE:g}: it was not made of these weights, or not exactly")
    if options.parity != "unverified":
        raise ParityError(
            f"{found}, above {PARITY_TOLERANCE:g}; export it in float32, or accept this with --parity unverified"
        )
    return f"{found}, as accepted", {"gate_parity": difference}


def _start_of_training(
    options: ExportSettings, heads: ClassifierHeads, sequences: Sequence[Encoded], expected: Floats | None, pad: int
) -> tuple[RewardModel | None, str]:
    """Make the torch model that later rounds start from, if the base's weights give the scores of its class.

    Returns:
        The model or None, and the manifest's note.
    """
    if expected is None:
        reason = "the base has no weights"
    elif heads.weights is not None or heads.count > 1:
        reason = "its classifier has several labels"
    else:
        try:
            model = RewardModel.from_base(options.base, options.heads, "auto", options.seed, options)
        except UnusableBase as error:
            reason = str(error).partition(";")[0]
        else:
            difference = largest_difference(model_scores(model, sequences, pad), expected)
            if difference <= PARITY_TOLERANCE:
                return model, f"later versions start from the base's weights, with {options.heads} heads"
            reason = f"as a reward model its weights score otherwise, by up to {difference:.3g}"
    return None, f"no later version can be trained from it: {reason}"
