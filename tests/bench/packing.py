"""Does packing pay? CPU time of the same SFT steps padded and packed, over a mix of lengths.

Lengths are log-normal (median `--median` tokens, sigma 0.8), cut at the maximum length; a fifth of each example is its
prompt. Each step has 32 examples. `padded` is how `rewardloop sft` runs without --packing: examples of similar length
in a step and in a forward pass. `as they come` has neither: a step's examples in the order of the file, 8 a forward, as
plain loops do. All take turns in every round; one thread.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rewardloop_trainer.data.dialogues import Example, pack, token_losses
from rewardloop_trainer.data.token_batches import by_length, plan_batches

VOCABULARY, STEP, PAD = 4_000, 32, 0

Rows = list[list[Example]]


def examples(count: int, median: int, longest: int, chance: random.Random) -> list[Example]:
    found = []
    for _ in range(count):
        length = min(longest, max(10, round(chance.lognormvariate(0, 0.8) * median)))
        ids = tuple(chance.randrange(1, VOCABULARY) for _ in range(length))
        found.append(Example(ids, ((length // 5, length),)))
    return found


def forwards(step: Sequence[Example], how: str, longest: int, budget: int) -> list[Rows]:
    """The rows of each forward pass of a step."""
    if how == "as they come":
        return [[[each] for each in step[i : i + 8]] for i in range(0, len(step), 8)]
    lengths = [len(each.ids) for each in step]
    places = pack(lengths, longest) if how == "packed" else [[i] for i in range(len(step))]
    rows = [[step[i] for i in row] for row in places]
    sizes = [sum(len(each.ids) for each in row) for row in rows]
    return [[rows[r] for r in group] for group in by_length(sizes, budget)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--median", type=int, default=80, help="tokens of an example")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--budget", type=int, default=8192, help="padded tokens in a forward pass")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        intermediate_size=options.width * 5 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        max_position_embeddings=options.max_length,
    )
    model = LlamaForCausalLM(config).eval()
    data = examples(16 * STEP, options.median, options.max_length, random.Random(0))
    sorted_steps = [[data[i] for i in step] for step in plan_batches([len(e.ids) for e in data], STEP, 0, 0)]
    in_order = [data[i : i + STEP] for i in range(0, len(data), STEP)]
    ways = {"as they come": in_order, "padded": sorted_steps, "packed": sorted_steps, "packed, as they come": in_order}
    pace: dict[str, list[float]] = {how: [] for how in ways}
    filled = {}
    for _ in range(options.rounds):
        for how, steps in ways.items():
            kind = "packed" if how.startswith("packed") else how
            run = [
                f for step in steps[: options.steps] for f in forwards(step, kind, options.max_length, options.budget)
            ]
            started = time.process_time()
            for rows in run:
                token_losses(model, rows, PAD).mean().backward()  # type: ignore[no-untyped-call]
                model.zero_grad(set_to_none=True)
            spent = time.process_time() - started
            sizes = [[sum(len(e.ids) for e in row) for row in rows] for rows in run]
            real = sum(map(sum, sizes))
            pace[how].append(real / spent)
            filled[how] = real / sum(max(row) * len(row) for row in sizes)
    plain = statistics.median(pace["padded"])
    for how, found in pace.items():
        now = statistics.median(found)
        print(f"{how:22} {now:8.0f} tokens/s of CPU, {now / plain:.2f} of padded, {filled[how]:.2f} of the run is text")


if __name__ == "__main__":
    main()
