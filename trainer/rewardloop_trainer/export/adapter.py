"""The files of a delta version: an adapter over the trunk's graph, and the weights that training continues from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from rewardloop.formats.graphs.inputs import GraphInputs
from rewardloop.formats.store import ADAPTER, TOKENIZER, TORCH
from rewardloop_trainer.export.adapter_inputs import HEADS_BIAS, HEADS_WEIGHT, input_names
from rewardloop_trainer.reward.lora import lora_layers, lora_matrices, save_delta
from rewardloop_trainer.reward.model import RewardModel


def export_delta(model: RewardModel, tokenizer: Tokenizer, out_dir: Path) -> None:
    """Write the adapter, tokenizer.json and torch/ (adapters and heads) of a model whose adapters are not merged.

    Raises:
        ValueError: If the model has no adapters.
    """
    model.eval()
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / TORCH).mkdir(exist_ok=True)
    save_delta(model, out_dir / TORCH)
    tokenizer.save(str(out_dir / TOKENIZER))
    write_adapter(model, out_dir / ADAPTER)


def write_adapter(model: RewardModel, path: Path) -> None:
    """Write the values of the graph's adapter inputs in ONNX Runtime's adapter format."""
    parameters = adapter_parameters(model)
    # The OrtValues are views of the arrays, so the arrays must live until the file is written.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in parameters.items()}
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


def adapter_parameters(model: RewardModel) -> dict[str, npt.NDArray[np.float32]]:
    """The value of each adapter input: A (d_in, rank), B (rank, d_out) times LoRA's alpha / rank, and the heads."""
    found = {HEADS_WEIGHT: model.heads.weight.detach().numpy(), HEADS_BIAS: model.heads.bias.detach().numpy()}
    for module, layer in lora_layers(model).items():
        a, b, factor = lora_matrices(layer)
        name_a, name_b = input_names(module)
        found |= {name_a: a.detach().numpy().T, name_b: factor * b.detach().numpy().T}
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in found.items()}


class AdaptedSession:
    """An ONNX Runtime session that runs with one adapter."""

    def __init__(self, session: onnxruntime.InferenceSession, adapter: Path) -> None:
        self._session = session
        # Without this reference the adapter is freed, and ONNX Runtime gives the trunk's scores without an error.
        self._adapter = onnxruntime.LoraAdapter()
        self._adapter.Load(str(adapter))
        self._options = onnxruntime.RunOptions()
        self._options.add_active_adapter(self._adapter)

    def run(self, output_names: Sequence[str] | None, inputs: GraphInputs) -> Sequence[Any]:
        found: Sequence[Any] = self._session.run(output_names, inputs, self._options)
        return found

    def get_inputs(self) -> Sequence[Any]:
        found: Sequence[Any] = self._session.get_inputs()
        return found
