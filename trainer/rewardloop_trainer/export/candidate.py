"""Writes a trained candidate as the files of a version, and checks that they score as the candidate does.

A whole version is first checked in float32. If another precision is wanted, it replaces float32 provided that it orders
held-out pairs alike. A delta runs at the precision of its trunk's graph: its parity is checked over that graph in
float32, which is written for the occasion if the trunk is stored in another precision, and the delta over the stored
graph is then judged like a change of precision.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rewardloop.formats.store import ADAPTER, MODEL
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.adapter import export_delta
from rewardloop_trainer.export.adapter_inputs import adapted_modules
from rewardloop_trainer.export.float16_range import float16_range
from rewardloop_trainer.export.graph import graph_of
from rewardloop_trainer.export.parity import export_reward, parity
from rewardloop_trainer.export.precision import JudgedPairs, choose_precision, graph_margins, judge, pair_sequences
from rewardloop_trainer.export.weights import write_graph
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.reward.lora import has_lora, lora_layers
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart, TrunkFiles


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    Attributes:
        parity: Largest absolute difference of a logit between ONNX in float32 and torch.
        precision: The precision of the written graph.
        figures: Figures of the precision, for the manifest.
        notes: Notes about the precision, for the manifest.
        reasons: Why the files must not be published; empty if they may be.
    """

    parity: float
    precision: str = "float32"
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Exported:
        raw = json.loads(text)
        return cls(**{**raw, "reasons": tuple(raw["reasons"])})


@dataclass(frozen=True, slots=True)
class Trial:
    """The data that an export is checked on.

    Attributes:
        encoder: The model's tokenizer and text layout.
        sequences: Sequences to check parity on.
        pairs: Held-out pairs to judge a precision on.
        margins: Computes the torch model's margins of the pairs, (pairs,), without the share of length; called only if
            a precision is judged.
        calibration: Training sequences, to calibrate a precision with.
        length: What calibration takes off a score because of length.
    """

    encoder: Encoder
    sequences: Sequence[Encoded]
    pairs: Sequence[Pair]
    margins: Callable[[], Floats]
    calibration: Sequence[Encoded]
    length: LengthShare


def is_delta(start: RewardStart, settings: RewardHyperparameters) -> bool:
    """Whether the layers that will be trained all have adapter inputs in the live version's graph."""
    if not settings.delta or start.trunk is None:
        return False
    wanted = lora_layers(start.model) or linear_modules(start.model.trunk, settings.lora.modules)
    return set(wanted) <= adapted_modules(start.trunk.graph)


def export_candidate(
    model: RewardModel, start: RewardStart, settings: RewardHyperparameters, trial: Trial, directory: Path
) -> Exported:
    """Write the candidate's version into ``directory``.

    A model with adapters becomes a delta over the trunk that training started from; any other becomes a whole version.

    Raises:
        ValueError: If the model has adapters but training started without a trunk.
        ExportFailed: If the architecture cannot be exported; other exceptions come from torch's exporter.
    """
    if has_lora(model):
        if start.trunk is None:
            raise ValueError("a model with adapters needs the trunk of a live version")
        export_delta(model, start.encoder.tokenizer, directory)
        return _delta_proof(model, start.trunk, settings, trial, directory / ADAPTER)
    adapters, parent = _adapters(start, model, settings), None if start.trunk is None else start.trunk.directory
    export_reward(model, start.encoder.tokenizer, start.encoder.format, directory, parent, adapters)
    difference = parity(directory / MODEL, model, trial.sequences, start.encoder.format.pad)
    if settings.precision == "float32":
        return Exported(difference)
    choice = choose_precision(
        directory,
        settings.precision,
        JudgedPairs(trial.pairs, trial.margins(), trial.encoder, trial.length),
        trial.calibration,
        tolerance=settings.gate_tolerance,
    )
    return Exported(difference, choice.precision, choice.figures, choice.notes(settings.precision))


def _adapters(start: RewardStart, model: RewardModel, settings: RewardHyperparameters) -> tuple[str, ...]:
    """Layers that get adapter inputs in a whole version: those that later deltas need, or else those of the parent."""
    if settings.delta:
        return linear_modules(model.trunk, settings.lora.modules)
    return () if start.trunk is None else tuple(sorted(adapted_modules(start.trunk.graph)))


def _delta_proof(
    model: RewardModel, trunk: TrunkFiles, settings: RewardHyperparameters, trial: Trial, adapter: Path
) -> Exported:
    pad = trial.encoder.format.pad
    if trunk.manifest.precision == "float32":
        return Exported(parity(trunk.graph, model, trial.sequences, pad, adapter=adapter))
    with tempfile.TemporaryDirectory(dir=adapter.parent.parent) as directory:
        graph = Path(directory) / MODEL
        modules = tuple(sorted(adapted_modules(trunk.graph)))
        write_graph(graph_of(trunk.model(), trial.encoder.format.segment_ids, modules), graph)
        difference = parity(graph, model, trial.sequences, pad, adapter=adapter)
        ranges: tuple[dict[str, float], tuple[str, ...]] = {}, ()
        if trunk.manifest.precision == "float16":
            sequences = pair_sequences(trial.encoder, trial.pairs)
            ranges = float16_range(graph, trunk.graph, sequences, pad, adapter)
    converted = graph_margins(trunk.graph, trial.pairs, trial.encoder, length=trial.length, adapter=adapter)
    figures, reasons = judge(trial.pairs, trial.margins(), converted, tolerance=settings.gate_tolerance)
    at = f"over a graph in {trunk.manifest.precision}: "
    return Exported(
        difference, trunk.manifest.precision, figures | ranges[0], reasons=tuple(at + r for r in (*ranges[1], *reasons))
    )
