"""What adapter inputs cost a run: each choice of layers without an adapter, and with one of rank 8, against a graph
without the inputs.

Medians of one thread's CPU time, the graphs taken in turns: `python tests/bench/adapter_cost.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, LlamaConfig, PretrainedConfig

from rewardloop.formats.text import Encoded
from rewardloop_trainer.export.adapter import write_adapter
from rewardloop_trainer.export.graph import graph_of
from rewardloop_trainer.export.parity import Runs, open_session, run_session
from rewardloop_trainer.export.weights import write_graph
from rewardloop_trainer.learning.linear_modules import AdapterModules, linear_modules
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel

_CHOICES: tuple[AdapterModules, ...] = ("none", "query_value", "attention", "all")


def configs() -> dict[str, PretrainedConfig]:
    encoder = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    decoder = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376}
    return {
        "encoder 6x384": BertConfig(vocab_size=8_000, **encoder),
        "decoder 8x512": LlamaConfig(vocab_size=8_000, use_cache=False, **decoder),
    }


def sessions(config: PretrainedConfig, directory: Path) -> dict[str, Runs]:
    is_decoder = isinstance(config, LlamaConfig)
    options = {} if is_decoder else {"add_pooling_layer": False}
    trunk = AutoModel.from_config(config, attn_implementation="sdpa", **options)
    model = RewardModel(trunk, 4, "last" if is_decoder else "mean").eval()
    found: dict[str, Runs] = {}
    for which in _CHOICES:
        graph = directory / f"{config.model_type}-{which}.onnx"
        write_graph(graph_of(model, False, linear_modules(model.trunk, which)), graph)
        found[which] = open_session(graph)
    for which in _CHOICES[1:]:
        adapted = with_lora(model, LoraSettings(rank=8, modules=which))  # type: ignore[arg-type]
        adapter = directory / f"{config.model_type}-{which}.onnx_adapter"
        write_adapter(adapted, adapter)
        adapted.merge_lora()
        found[f"{which} + rank 8"] = open_session(directory / f"{config.model_type}-{which}.onnx", adapter)
    return found


def cpu_s(session: Runs, sequences: Sequence[Encoded]) -> float:
    started = time.process_time()
    run_session(session, sequences, 0)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, config in configs().items():
        with tempfile.TemporaryDirectory() as directory:
            found = sessions(config, Path(directory))
            for rows, length in ((1, 64), (8, 128)):
                sequences = [Encoded(torch.randint(5, 8_000, (length,)).tolist(), None, False) for _ in range(rows)]
                taken: dict[str, list[float]] = {which: [] for which in found}
                for _ in range(rounds + 1):
                    for which, session in found.items():
                        taken[which].append(cpu_s(session, sequences))
                median = {which: statistics.median(seconds[1:]) for which, seconds in taken.items()}
                print(
                    f"{name}, {rows} x {length} tokens: {median['none'] * 1e3:.1f} ms without adapter inputs",
                    flush=True,
                )
                for which in list(found)[1:]:
                    print(f"  {which:24} {median[which] / median['none']:.3f}", flush=True)


if __name__ == "__main__":
    main()
