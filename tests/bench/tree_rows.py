"""Which plan a decoder's groups are run by: seconds as one padded run, in buckets, as one tree row, and as planned.

A tree row attends over its prompt's keys and values, and beside that by a mask. The ceiling of one group is the fastest
of these ways in bare sessions, one on all cores or one on each core (`ceiling.py`).

A Llama-type reward model, 8 layers, 512 wide, random weights, exported as every version is. Each cell runs every plan
in turn, several rounds, and takes the least time of each, so that a machine that slows down slows all.

    python tests/bench/tree_rows.py
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from ceiling import Work, bare_session, cores, repeat, side_by_side
from tokenizers import Tokenizer, models
from transformers import AutoModel, LlamaConfig

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.graphs.inputs import GraphInputs, tree_rows
from rewardloop.formats.store import MODEL, Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.plan import Run, plan_runs
from rewardloop_trainer.export.parity import export_reward
from rewardloop_trainer.reward.model import RewardModel as TorchRewardModel

VOCABULARY = 8192
HEADLINE = (400, 8, 60)
# Prompt, responses, and tokens of a response on average: they vary by half of it.
CELLS = [(p, k, 60) for p in (16, 100, 400, 800) for k in (2, 8, 16)] + [(16, 16, 200), (400, 8, 400)]
WAYS = ("padded", "buckets", "mask", "tree", "planned")
FORESEEN = ("padded", "buckets", "mask", "planned")  # ways whose seconds the cost model estimates
COLUMNS = ("prompt", "k", "tokens", *(f"{way} s" for way in WAYS), "foreseen s", "of best", "as")


def load(directory: Path, layers: int, width: int, threads: int) -> tuple[RewardModel, Any, list[Any]]:
    """The reward model on this machine, its cost model fitted; a bare session on all cores; one for each core."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        intermediate_size=width * 4,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    trunk = AutoModel.from_config(config)
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    text_format = TextFormat.for_decoder(tokenizer, eos_id=1, bos_id=1, pad_id=0)
    store = ModelStore(directory / "store")

    def write(target: Path) -> None:
        export_reward(TorchRewardModel(trunk, 4, "last", None).eval(), tokenizer, text_format, target)

    manifest = store.publish(
        Manifest(model="reward", text_format=text_format.to_json(), max_length=1024, heads=4), write
    )
    pool = SessionPool(store, Device("cpu", threads, spin=False), ServerMetrics())
    version = store.fetch("reward", manifest.version)
    whole, *single = (bare_session(version / MODEL, threads) for threads in (0, *(1 for _ in cores())))
    return pool.load(manifest, version), whole, single


def group(prompt: int, k: int, tokens: int, *, even: bool = False) -> list[Encoded]:
    chance = random.Random(prompt * 1000 + k)
    sizes = [tokens if even else chance.randint(tokens // 2, tokens * 3 // 2) for _ in range(k)]
    start = [chance.randrange(2, VOCABULARY) for _ in range(prompt)]
    return [
        Encoded([*start, *(chance.randrange(2, VOCABULARY) for _ in range(n))], None, False, n, prompt) for n in sizes
    ]


def plans(model: RewardModel, rows: list[Encoded]) -> dict[str, list[Run]]:
    longest, prompt = max(len(r.ids) for r in rows), rows[0].prompt_tokens
    packed = prompt + sum(len(r.ids) - prompt for r in rows)
    return {
        "padded": [Run(tuple((i,) for i in range(len(rows))), longest, model.cost.run_s(len(rows), longest))],
        "buckets": plan_runs(rows, model.cost, trees=False),
        "mask": [Run((tuple(range(len(rows))),), packed, model.cost.run_s(1, packed))],
        "tree": [Run((tuple(range(len(rows))),), packed, model.cost.run_s(1, packed))],
        "planned": model.plan(rows),
    }


def seconds(model: RewardModel, rows: list[Encoded], runs: list[Run], *, by_mask: bool) -> float:
    """Planning and laying out are beside the engine in the service; here they are left out."""
    feeds = [model.lay_out(rows, run) for run in runs]
    if by_mask:
        inputs = tree_rows([rows], runs[0].length, model.encoder.format.pad)
        feeds = [replace(feed, inputs=inputs) for feed in feeds]
    started = time.perf_counter()
    for each in feeds:
        model.execute(each)
    return time.perf_counter() - started


def measure(model: RewardModel, rows: list[Encoded], rounds: int) -> tuple[dict[str, float], dict[str, list[Run]]]:
    """Least seconds of each plan; plans that are the same are timed once a round."""
    wanted = plans(model, rows)
    keys = {name: (name == "mask", *(run.items for run in runs)) for name, runs in wanted.items()}
    distinct = {key: wanted[name] for name, key in keys.items()}
    least = dict.fromkeys(distinct, float("inf"))
    for _ in range(rounds):
        for key, runs in distinct.items():
            least[key] = min(least[key], seconds(model, rows, runs, by_mask=bool(key[0])))
    return {name: least[key] for name, key in keys.items()}, wanted


def ceiling(model: RewardModel, rows: list[Encoded], whole: Any, single: list[Any], seconds: float) -> dict[str, float]:
    """Groups a second of each way in bare sessions."""
    found: dict[str, float] = {}
    for way, runs in plans(model, rows).items():
        feeds = [tree_rows([rows], runs[0].length, model.encoder.format.pad)] if way == "mask" else []
        feeds = feeds or [model.lay_out(rows, run).inputs for run in runs]

        def run(session: Any, feeds: list[GraphInputs] = feeds) -> Work:
            for inputs in feeds:
                session.run(["logits"], inputs)
            return Work(1, 0)

        found[f"{way}, one session on all cores"] = repeat(partial(run, whole), seconds).pairs_per_s
        beside = side_by_side([partial(run, session) for session in single], seconds)
        found[f"{way}, a session on each core"] = beside.pairs_per_s
    return found


def planned_rate(model: RewardModel, rows: list[Encoded], seconds: float) -> float:
    """Groups a second as planned, one at a time, with the service's session; a mean, as the ceiling's is."""
    feeds = [model.lay_out(rows, run) for run in model.plan(rows)]

    def run() -> Work:
        for each in feeds:
            model.execute(each)
        return Work(1, 0)

    return repeat(run, seconds).pairs_per_s


def laid_out_ms(model: RewardModel) -> float:
    """Median milliseconds of CPU time in which a tree row of 4,096 tokens is laid out."""
    rows, taken = group(2048, 8, 256, even=True), []
    for _ in range(200):
        started = time.thread_time()
        model.lay_out(rows, Run((tuple(range(8)),), 4096, 0.0))
        taken.append(time.thread_time() - started)
    return statistics.median(taken) * 1e3


def described(runs: list[Run]) -> str:
    return " + ".join(f"{len(run.items)}x{run.length} {run.kind}" for run in runs[:3]) + (" ..." if runs[3:] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each way of the ceiling (default 4)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model, whole, single = load(Path(directory), options.layers, options.width, options.threads)
    cost = model.cost
    load_average = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, load {load_average:.1f}, "
        f"ONNX Runtime {onnxruntime.__version__}; {options.layers} layers, {options.width} wide, float32\n"
        f"cost model: {cost.fixed_s * 1e3:.2f} ms + {cost.per_token_s * 1e6:.1f} us a token "
        f"+ {cost.per_token2_s * 1e9:.1f} ns a token squared"
    )
    print(("{:>10}" * (len(COLUMNS) - 1) + "  {}").format(*COLUMNS))
    worst, ratios = 0.0, {way: list[float]() for way in FORESEEN}
    for prompt, k, tokens in CELLS:
        found, wanted = measure(model, group(prompt, k, tokens), options.rounds)
        of_best = found["planned"] / min(found.values())
        worst = max(worst, of_best)
        for way, each in ratios.items():
            each.append(sum(run.cost_s for run in wanted[way]) / found[way])
        foreseen = sum(run.cost_s for run in wanted["planned"])
        figures = "".join(f"{found[name]:>10.3f}" for name in WAYS)
        print(
            f"{prompt:>10}{k:>10}{tokens:>10}{figures}{foreseen:>10.3f}{of_best:>10.2f}  {described(wanted['planned'])}"
        )
    told = (f"{way} {statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for way, r in ratios.items())
    print(f"\nforeseen over measured: {', '.join(told)}")
    found, wanted = measure(model, group(*HEADLINE, even=True), options.rounds + 1)
    foreseen = {name: sum(run.cost_s for run in wanted[name]) for name in ("padded", "planned")}
    rows = group(*HEADLINE, even=True)
    before = planned_rate(model, rows, options.seconds)
    bare = ceiling(model, rows, whole, single, options.seconds)
    ours = (before + planned_rate(model, rows, options.seconds)) / 2
    best = max(bare, key=lambda way: bare[way])
    laid_out = laid_out_ms(model)
    print(f"\na tree row of 4,096 tokens is laid out in {laid_out:.2f} ms of the event loop's CPU time")
    print(
        f"\nworst planned over best: {worst:.2f} (foreseen: at most 1.10)\n"
        f"prompt 400, 8 responses of 60: padded {found['padded']:.3f} s, planned {found['planned']:.3f} s: "
        f"{found['padded'] / found['planned']:.2f}x (foreseen by the cost model: "
        f"{foreseen['padded'] / foreseen['planned']:.2f}x)\n"
        f"ceiling: {bare[best]:.2f} groups/s ({best}); planned, one at a time: {ours / bare[best]:.2f} of it"
    )


if __name__ == "__main__":
    main()
