"""What the torch engine takes beside the graph, on a CPU: plain rows, tree rows, and responses to kept prompts.

A Llama-type reward model and a BERT-type one with random weights, exported as every version is, and loaded by both
engines. Each cell runs both in turn, several rounds, and takes the least CPU time of each, so that a machine that slows
down slows both. A ratio below 1 says that torch is faster. "kept" are further responses to a prompt whose keys and
values torch has kept, beside the whole tree row by the graph.

    python tests/bench/engines.py
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModel, BertConfig, LlamaConfig

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.plan import Run
from rewardloop_server.torch_engine.opening import OpenTorch
from rewardloop_server.torch_engine.prefixes import Prefixes
from rewardloop_trainer.export.parity import export_reward
from rewardloop_trainer.reward.model import RewardModel as TorchRewardModel

VOCABULARY = 8192
# Rows and tokens of plain rows.
ROWS = ((1, 16), (1, 128), (8, 64), (4, 256), (1, 512))
# Prompt, responses, and tokens of each response.
GROUPS = ((100, 8, 60), (400, 8, 60), (400, 16, 30), (800, 4, 60), (800, 1, 60))


def loaded(kind: str, directory: Path, layers: int, width: int, threads: int) -> dict[str, RewardModel]:
    """A version of this kind, loaded by each engine."""
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": width * 4,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
    }
    config = LlamaConfig(**size, num_key_value_heads=width // 64) if kind == "llama" else BertConfig(**size)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    if kind == "llama":
        text_format = TextFormat.for_decoder(tokenizer, eos_id=1, bos_id=1, pad_id=0)
        model = TorchRewardModel(AutoModel.from_config(config), 4, "last")
    else:
        text_format = TextFormat.for_encoder(tokenizer)
        model = TorchRewardModel(AutoModel.from_config(config, add_pooling_layer=False), 4, "mean")
    store = ModelStore(directory / kind)
    manifest = store.publish(
        Manifest(model="reward", text_format=text_format.to_json(), max_length=1024, heads=4),
        lambda target: export_reward(model.eval(), tokenizer, text_format, target),
    )
    device, version = Device("cpu", threads, spin=False), store.fetch("reward", manifest.version)
    return {
        "onnx": SessionPool(store, device, ServerMetrics()).load(manifest, version),
        "torch": SessionPool(store, device, ServerMetrics(), opens=OpenTorch).load(manifest, version),
        "kept": SessionPool(
            store, device, ServerMetrics(), opens=functools.partial(OpenTorch, prefixes=Prefixes(2**30))
        ).load(manifest, version),
    }


def row(chance: random.Random, prompt: list[int], size: int) -> Encoded:
    return Encoded([*prompt, *drawn(chance, size)], None, False, size, len(prompt))


def drawn(chance: random.Random, size: int) -> list[int]:
    return [chance.randrange(4, VOCABULARY) for _ in range(size)]


def seconds(model: RewardModel, rows: list[Encoded], run: Run) -> float:
    """CPU time of one run. Laying out is beside the engine in the service; here it is left out."""
    feeds = model.lay_out(rows, run)
    started = time.process_time()
    model.execute(feeds)
    return time.process_time() - started


def measure(engines: dict[str, RewardModel], rows: list[Encoded], run: Run, rounds: int) -> dict[str, float]:
    """Least CPU seconds of each engine, in turns. In the first round "kept" has to compute the prompt."""
    least = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):
        for name, model in engines.items():
            least[name] = min(least[name], seconds(model, rows, run))
    return least


def show(named: str, found: dict[str, float], ways: tuple[str, ...]) -> dict[str, float]:
    """Print a line, and return each way over the graph."""
    ratios = {way: found[way] / found["onnx"] for way in ways}
    figures = "".join(f"{found[way] * 1e3:>10.1f}{ratio:>7.2f}" for way, ratio in ratios.items())
    print(f"{named:<44}{found['onnx'] * 1e3:>10.1f}{figures}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__}; {options.layers} layers, "
        f"{options.width} wide, float32\n"
        f"{'CPU time, ms':<44}{'onnx':>10}{'torch':>10}{'ratio':>7}{'kept':>10}{'ratio':>7}"
    )
    chance = random.Random(0)
    ratios: dict[str, list[float]] = {"rows": [], "tree rows": [], "responses to a kept prompt": []}
    with tempfile.TemporaryDirectory() as directory:
        for kind in ("bert", "llama"):
            engines = loaded(kind, Path(directory), options.layers, options.width, options.threads)
            for count, length in ROWS:
                # Half of the rows are shorter, so that an encoder has padding to leave out.
                rows = [row(chance, [], length if i % 2 == 0 else length * 3 // 4) for i in range(count)]
                run = Run(tuple((i,) for i in range(count)), length, 0.0)
                found = measure(engines, rows, run, options.rounds)
                shown = show(f"{kind}, {count} rows of up to {length}", found, ("torch",))
                ratios["rows"].append(shown["torch"])
            for prompt, count, size in GROUPS if kind == "llama" else ():
                shared = drawn(chance, prompt)
                rows = [row(chance, shared, size) for _ in range(count)]
                run = Run((tuple(range(count)),), prompt + count * size, 0.0)
                found = measure(engines, rows, run, options.rounds)
                shown = show(f"{kind}, a prompt of {prompt}, {count} responses of {size}", found, ("torch", "kept"))
                ratios["tree rows"].append(shown["torch"])
                ratios["responses to a kept prompt"].append(shown["kept"])
    for name, each in ratios.items():
        print(f"{name}: torch over onnx {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    main()
