"""A reward model as ONNX, and the proof that it gives the torch model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from tokenizers import Tokenizer

from rewardloop.formats.text import Encoded, TextFormat
from rewardloop_trainer.export_graph import fill, graph_of, load_graph, write_graph
from rewardloop_trainer.reward_batches import collate
from rewardloop_trainer.reward_model import RewardModel

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
TORCH = "torch"
PARITY_TOLERANCE = 1e-4


class ParityError(Exception):
    """The exported model's logits are not the torch model's."""


class Runs(Protocol):
    """What parity needs of an ONNX Runtime session."""

    def run(self, output_names: None, inputs: dict[str, npt.NDArray[np.int64]]) -> Sequence[Any]: ...


def export_reward(
    model: RewardModel, tokenizer: Tokenizer, text_format: TextFormat, out_dir: Path, parent: Path | None = None
) -> None:
    """Write model.onnx, tokenizer.json and torch/ into ``out_dir``, as a reward version holds them.

    ``parent``: the directory of a version, normally the one trained from; its graph is reused when it is of the same
    architecture. Raises ValueError on adapters that are not merged, and whatever torch's exporter raises.
    """
    model.eval()
    out_dir.mkdir(parents=True, exist_ok=True)
    torch_dir = out_dir / TORCH
    torch_dir.mkdir(exist_ok=True)
    model.save(torch_dir)
    tokenizer.save(str(out_dir / TOKENIZER))
    graph = load_graph(parent / MODEL) if parent is not None else None
    if graph is None or not fill(graph, model, text_format.segment_ids):
        graph = graph_of(model, text_format.segment_ids)
    write_graph(graph, out_dir / MODEL)


def parity(onnx_path: Path, model: RewardModel, sequences: Sequence[Encoded], pad: int, batch_rows: int = 16) -> float:
    """Largest absolute difference of a logit between ONNX, in batches of mixed length, and torch, one by one.

    Torch reads each sequence alone and unpadded, so the figure also shows that padding and neighbours change nothing.
    Infinite where ONNX gives a logit that is not finite.
    """
    session = onnxruntime.InferenceSession(str(onnx_path), _session_options(), providers=["CPUExecutionProvider"])
    worst = 0.0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(sequences), batch_rows):
            batch = sequences[start : start + batch_rows]
            found = run_session(session, batch, pad)
            if not np.isfinite(found).all():
                return float("inf")
            expected = torch.cat([model(*collate([s], pad)) for s in batch]).numpy()
            worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def check_parity(onnx_path: Path, model: RewardModel, sequences: Sequence[Encoded], pad: int) -> float:
    """`parity`. Raises `ParityError` above the tolerance."""
    difference = parity(onnx_path, model, sequences, pad)
    if not difference <= PARITY_TOLERANCE:
        raise ParityError(f"ONNX logits differ from torch by {difference:.3g}, above {PARITY_TOLERANCE:g}")
    return difference


def run_session(session: Runs, sequences: Sequence[Encoded], pad: int) -> npt.NDArray[np.float32]:
    """Logits (n, k) of one padded batch."""
    ids, mask, types = collate(sequences, pad)
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    if types is not None:
        inputs["token_type_ids"] = types.numpy()
    logits: npt.NDArray[np.float32] = session.run(None, inputs)[0]
    return logits


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options
