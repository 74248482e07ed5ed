"""What a mask costs attention on a CPU.

An encoder that takes the lengths of its rows runs beside one with a mask of padding, and a decoder's tree row over its
prompt's keys and values beside one with a mask.

Medians of one thread's CPU time, the ways in turns, random weights: `python tests/bench/attention_masks.py`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoModel, BertConfig, LlamaConfig, PretrainedConfig

from rewardloop.formats.graphs.inputs import GraphInputs, decoder_rows, encoder_rows, tree_rows, tree_tokens
from rewardloop.formats.text import Encoded
from rewardloop_trainer.export import graph
from rewardloop_trainer.export.parity import Runs, open_session
from rewardloop_trainer.export.precision import Precision, convert
from rewardloop_trainer.export.weights import write_graph
from rewardloop_trainer.reward.model import RewardModel

VOCABULARY = 8_000
# MiniLM's sizes, and the decoder of tree_rows.py.
ENCODER = BertConfig(
    vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)
DECODER = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048
)
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "bfloat16")
# Rows and tokens of the longest; the others have half of its tokens or more.
BATCHES = ((1, 16), (1, 64), (1, 256), (8, 64), (8, 128), (4, 512))
# Tokens of the prompt, responses, tokens of each on average: they vary by half of it.
TREES = ((400, 8, 60), (16, 2, 60), (100, 2, 60), (16, 16, 60), (16, 16, 200), (800, 16, 60), (1000, 4, 20))

Run = Callable[[], object]


def sequence(tokens: int) -> Encoded:
    return Encoded([random.randrange(2, VOCABULARY) for _ in range(tokens)], None, truncated=False)


def model(config: PretrainedConfig) -> RewardModel:
    is_decoder = isinstance(config, LlamaConfig)
    options = {} if is_decoder else {"add_pooling_layer": False}
    trunk = AutoModel.from_config(config, attn_implementation="sdpa", **options)
    return RewardModel(trunk, 4, "last" if is_decoder else "mean").eval()


def opened(exported: RewardModel, path: Path, precision: Precision) -> Runs:
    write_graph(graph.graph_of(exported, False), path)
    if precision != "float32":
        convert(path, precision, [sequence(64) for _ in range(8)])
    return open_session(path, threads=1)


def medians(ways: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of CPU time of each way; the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def encoders(directory: Path, precision: Precision, rounds: int) -> None:
    exported = model(ENCODER)
    by_lengths = opened(exported, directory / f"{precision}-lengths.onnx", precision)
    with patch.object(graph, "take_lengths", lambda _: 0):
        by_mask = opened(exported, directory / f"{precision}-mask.onnx", precision)
    for rows, longest in BATCHES:
        batch = [sequence(longest), *(sequence(random.randint(longest // 2, longest)) for _ in range(rows - 1))]
        feeds = encoder_rows(batch, longest, 0, has_segments=False)
        ways = {"mask": by_mask, "lengths": by_lengths}
        found = medians({name: lambda s=session, f=feeds: s.run(None, f) for name, session in ways.items()}, rounds)
        print(
            f"encoder {precision}, {rows} x {longest} tokens: {found['mask'] * 1e3:.1f} ms by a mask, lengths "
            f"{found['lengths'] / found['mask']:.3f} of it",
            flush=True,
        )


def trees(directory: Path, precision: Precision, rounds: int) -> None:
    session = opened(model(DECODER), directory / f"{precision}-decoder.onnx", precision)
    for prompt, responses, tokens in TREES:
        start = sequence(prompt).ids
        ends = [sequence(random.randint(tokens // 2, tokens * 3 // 2)).ids for _ in range(responses)]
        group = [Encoded([*start, *end], None, False, len(end), prompt) for end in ends]
        length, longest = tree_tokens(group), max(len(row.ids) for row in group)
        inputs: dict[str, GraphInputs] = {
            "mask": tree_rows([group], length, 0),
            "shared": tree_rows([group], length, 0, shares_prompt=True),
            "rows": decoder_rows(group, longest, 0),
        }
        runs = {name: lambda f=feeds: session.run(None, f) for name, feeds in inputs.items()}
        found = medians(runs, rounds)
        print(
            f"decoder {precision}, {responses} responses of {tokens} to {prompt}: {found['mask'] * 1e3:.0f} ms by a "
            f"mask, over keys and values {found['shared'] / found['mask']:.3f} of it, "
            f"a row each {found['rows'] / found['mask']:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("encoders", "trees"))
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as made:
        for precision in options.precision or PRECISIONS:
            if options.only != "trees":
                encoders(Path(made), precision, options.rounds)
            if options.only != "encoders" and precision != "int8":
                trees(Path(made), precision, options.rounds)


if __name__ == "__main__":
    main()
