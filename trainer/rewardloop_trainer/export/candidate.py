"""A trained candidate as the files of a version, with what shows that they score as it does.

A whole version is proved in float32 first; the precision that is wanted replaces it where that orders pairs alike. A
delta runs at its trunk's precision: proved over the trunk's graph, written in float32 for the occasion where it is
stored otherwise, and then judged as a change of precision is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rewardloop.formats.store import ADAPTER, MODEL
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.adapter import export_delta
from rewardloop_trainer.export.adapter_inputs import adapted_modules
from rewardloop_trainer.export.graph import graph_of, write_graph
from rewardloop_trainer.export.parity import export_reward, parity
from rewardloop_trainer.export.precision import choose_precision, graph_margins, judge
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.reward.lora import has_lora, lora_layers
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart, TrunkFiles


@dataclass(frozen=True, slots=True)
class Exported:
    """``parity``: largest difference of a logit, ONNX in float32 against torch. ``figures`` and ``notes``: about the
    precision, for the manifest. ``reasons``: why the files must not be published."""

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
    """What an export is tried on. ``sequences``: for parity. ``margins``: the torch model's on ``pairs``, with the
    length slope taken off; computed where a precision is judged. ``calibration``: training sequences.
    """

    encoder: Encoder
    sequences: Sequence[Encoded]
    pairs: Sequence[Pair]
    margins: Callable[[], Floats]
    calibration: Sequence[Encoded]
    length_slope: float
    seed: int


def is_delta(start: RewardStart, settings: RewardHyperparameters) -> bool:
    """Whether what is to be trained can be published as an adapter over the live version's graph."""
    if not settings.delta or start.trunk is None:
        return False
    wanted = lora_layers(start.model) or linear_modules(start.model.trunk, settings.lora.modules)
    return set(wanted) <= adapted_modules(start.trunk.graph)


def export_candidate(
    model: RewardModel, start: RewardStart, settings: RewardHyperparameters, trial: Trial, directory: Path
) -> Exported:
    """Fill ``directory`` with the candidate's version; a model with adapters on becomes a delta over the start's trunk.

    Raises ValueError for adapters without a trunk, and what torch's exporter raises.
    """
    if has_lora(model):
        if start.trunk is None:
            raise ValueError("adapters are trained on a live version's trunk")
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
        trial.pairs,
        trial.encoder,
        trial.margins(),
        trial.calibration,
        length_slope=trial.length_slope,
        tolerance=settings.gate_tolerance,
        seed=trial.seed,
    )
    return Exported(difference, choice.precision, choice.figures, choice.notes(settings.precision))


def _adapters(start: RewardStart, model: RewardModel, settings: RewardHyperparameters) -> tuple[str, ...]:
    """The layers that get adapter inputs in a whole version: those that deltas need, or those of its parent."""
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
    converted = graph_margins(trunk.graph, trial.pairs, trial.encoder, length_slope=trial.length_slope, adapter=adapter)
    figures, reasons = judge(
        trial.pairs, trial.margins(), converted, tolerance=settings.gate_tolerance, seed=trial.seed
    )
    at = f"over a graph in {trunk.manifest.precision}: "
    return Exported(difference, trunk.manifest.precision, figures, reasons=tuple(at + r for r in reasons))
