"""A reward encoder's precisions and operators side by side: speed, and how far its scores move from float32's.

    python tests/bench/precision.py --version DIR --data ../shared/data

Without ``--version``: MiniLM with new heads, whose pairs are decided by less than a trained model's. Speed is per
second of the thread's CPU time, the least of the rounds, on one thread; the variants take turns, so that what else the
machine does distorts all alike. ``neighbours``: the largest difference of a logit between a sequence alone and in a
batch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import minilm
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import service
import torch
from arguments import work_directory
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import MODEL, Manifest
from rewardloop.formats.text import Encoded, Encoder, Turn
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.base_layout import encoder_layout
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.parity import export_reward, run_session
from rewardloop_trainer.export.precision import agreement, convert
from rewardloop_trainer.reward.evaluate import correctness
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.model import RewardModel

Logits: TypeAlias = npt.NDArray[np.float64]
SHAPES = ((8, 128), (16, 256), (1, 64))
BATCH_TOKENS = 2048
CALIBRATION_PAIRS = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, help="an encoder version's directory, in float32")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="has alpacaeval_*.jsonl.gz")
    parser.add_argument("--pairs", type=int, default=60, help="held-out pairs to score with each variant")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each variant and shape")
    parser.add_argument("--work", type=Path, default=None, help="keeps the models there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    service.print_machine()
    with work_directory(options.work) as work:
        directory = options.version or _minilm_version(work)
        encoder = _encoder(directory)
        heldout = _pairs(options.data / "alpacaeval_test.jsonl.gz", options.pairs)
        calibration = _sequences(encoder, _pairs(options.data / "alpacaeval_train.jsonl.gz", CALIBRATION_PAIRS))
        sessions = {name: _session(path) for name, path in _variants(directory, work, calibration).items()}
        model = RewardModel.load(directory / "torch")
        speeds = _speeds(sessions, model, options.rounds, encoder)
        _print(sessions, speeds, _sequences(encoder, heldout), encoder.format.pad)
    return 0


def _variants(directory: Path, work: Path, calibration: Sequence[Encoded]) -> dict[str, Path]:
    """Graphs by name, the first the float32 one."""
    source = directory / MODEL

    def made(name: str, write: Callable[[Path], None]) -> Path:
        path = work / f"{name}.onnx"
        write(path)
        return path

    def ours(sequences: Sequence[Encoded]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            shutil.copyfile(source, path)
            convert(path, "int8", sequences)

        return write

    return {
        "float32": source,
        "float32, fused attention": made("fused", lambda path: _fuse_attention(source, path)),
        "int8": made("int8", ours(calibration)),
        "int8, uncalibrated": made("int8-plain", ours(())),
        "int8, one scale a batch (ONNX Runtime)": made("dynamic", lambda path: _dynamic(source, path)),
        "int8 weights in blocks of 128": made("blocks", lambda path: _blocks(source, path)),
    }


def _dynamic(source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )


def _blocks(source: Path, path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=True, accuracy_level=4, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(source)), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


def _fuse_attention(source: Path, path: Path) -> None:
    """ONNX Runtime's MultiHeadAttention, which splits the heads itself, for opset 23's Attention."""
    model = onnx.load(str(source))
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    mask = helper.make_node("Cast", ["attention_mask"], ["is_real"], to=TensorProto.INT32)
    nodes, dropped = [mask], set()
    for node in graph.node:
        if node.op_type == "Attention":
            flat = [producers[producers[name].input[0]].input[0] for name in node.input[:3]]
            (transposed,) = readers[node.output[0]]
            (joined,) = readers[transposed.output[0]]
            heads = _attention_heads(source)
            dropped |= {id(transposed), id(joined)}
            node = helper.make_node(
                "MultiHeadAttention",
                [*flat, "", "is_real"],
                [joined.output[0]],
                domain="com.microsoft",
                num_heads=heads,
            )
        if id(node) not in dropped:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))


def _attention_heads(source: Path) -> int:
    heads: int = json.loads((source.parent / "torch" / "config.json").read_text())["num_attention_heads"]
    return heads


def _speeds(
    sessions: dict[str, ort.InferenceSession], model: RewardModel, rounds: int, encoder: Encoder
) -> dict[str, list[float]]:
    """Tokens a second of CPU time, by variant and shape."""
    generator = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {name: [] for name in ("torch float32", *sessions)}
    for rows, length in SHAPES:
        ids = generator.integers(1000, min(30_000, model.config.vocab_size), (rows, length))
        types = [0] * length if encoder.format.segment_ids else None
        batch = [Encoded(row.tolist(), types, False) for row in ids]
        runs: dict[str, Callable[[], object]] = {"torch float32": _torch_run(model, batch, encoder.format.pad)}
        runs |= {name: _onnx_run(session, batch, encoder.format.pad) for name, session in sessions.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):  # the first warms up
            for name, run in runs.items():
                began = time.thread_time()
                for _ in range(16 if rows == 1 else 1):
                    run()
                seconds[name].append((time.thread_time() - began) / (16 if rows == 1 else 1))
        for name, measured in seconds.items():
            speeds[name].append(rows * length / min(measured[1:]))
    return speeds


def _torch_run(model: RewardModel, batch: list[Encoded], pad: int) -> Callable[[], object]:
    from rewardloop_trainer.reward.examples import collate

    inputs = collate(batch, pad)

    def run() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return run


def _onnx_run(session: ort.InferenceSession, batch: list[Encoded], pad: int) -> Callable[[], object]:
    return lambda: run_session(session, batch, pad)


def _print(
    sessions: dict[str, ort.InferenceSession],
    speeds: dict[str, list[float]],
    sequences: list[Encoded],
    pad: int,
) -> None:
    base = speeds["float32"]
    columns = "".join(f"{f'{rows}x{length} tok/s (ratio)':>24}" for rows, length in SHAPES)
    print(f"{'one thread':40}{columns}{'agreement':>11}{'accuracy':>10}{'rms':>8}{'largest':>9}{'neighbours':>12}")
    reference: Logits | None = None
    for name, measured in speeds.items():
        cells = "".join(f"{f'{s:,.0f} ({s / b:.2f})':>24}" for s, b in zip(measured, base, strict=True))
        print(f"{name:40}{cells}", end="", flush=True)
        if name in sessions:
            logits = _logits(sessions[name], sequences, pad)
            reference = logits if reference is None else reference
            alone = [run_session(sessions[name], [s], pad).mean() for s in sequences[:12]]
            margins, expected = (found[0::2] - found[1::2] for found in (logits, reference))
            print(
                f"{agreement(expected, margins):11.4f}{correctness(margins).mean():10.4f}"
                f"{np.sqrt(np.mean((logits - reference) ** 2)):8.4f}{np.abs(logits - reference).max():9.4f}"
                f"{np.abs(logits[:12] - alone).max():12.1e}",
                end="",
            )
        print(flush=True)


def _logits(session: ort.InferenceSession, sequences: list[Encoded], pad: int) -> Logits:
    """Head-mean logits, in batches of like length."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    logits = np.empty(len(sequences))
    while order:
        rows = max(1, BATCH_TOKENS // len(sequences[order[min(len(order), 64) - 1]].ids))
        taken, order = order[:rows], order[rows:]
        logits[taken] = run_session(session, [sequences[i] for i in taken], pad).mean(1)
    return logits


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _pairs(path: Path, count: int) -> list[Pair]:
    rows: Any = [line.value() for line in SourceFile.of(path).lines()]
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return [Pair((Turn("user", rows[i]["prompt"]),), rows[i]["chosen"], rows[i]["rejected"]) for i in chosen]


def _sequences(encoder: Encoder, pairs: list[Pair]) -> list[Encoded]:
    return [s for example in encode_records(encoder, pairs).examples for s in example.sequences]


def _encoder(directory: Path) -> Encoder:
    manifest = Manifest.from_json((directory / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return Encoder(tokenizer, TextFormat.from_json(manifest.text_format), manifest.max_length)


def _minilm_version(work: Path) -> Path:
    base, directory = str(minilm.fetch(work)), work / "version"
    tokenizer = load_tokenizer(base)
    model = RewardModel.from_base(base, 4, "auto", 0)
    text_format = encoder_layout(tokenizer, segment_ids=False, has_segments=False, is_trained=False).text_format
    export_reward(model, tokenizer.backend_tokenizer, text_format, directory)
    manifest = Manifest(model="reward", text_format=text_format.to_json(), max_length=256, heads=4)
    (directory / "manifest.json").write_text(manifest.to_json())
    return directory


if __name__ == "__main__":
    sys.exit(main())
