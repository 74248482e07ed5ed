"""How much a reward model learns from how many signals, beside length, a bag of words, and the ceiling.

    python tests/bench/learning_curve.py --worlds demo --seeds 0 1 2
    python tests/bench/learning_curve.py --worlds humour arguments alpacaeval --shared ../shared/data --sizes 1000 9000

Every point is a new model from the base that learns the first signals by the trainer's own defaults, for all data
alike, and is measured on pairs by which nothing was chosen. The demo's base is its starter, that of people's data is
MiniLM. Signals of the demo are of all kinds; a bag of words learns from its choices, edits and rankings. A world whose
data are absent is skipped with a line. ``--epochs 0`` leaves the trunk as it is, so that the linear start alone learns;
MiniLM then reads each text once, for all sizes and seeds.
"""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import arguments as options
import minilm
import numpy as np
import torch
from curve_data import WORLDS, World
from remembering import RememberingModel

from rewardloop.formats.text import Encoder
from rewardloop_data.source_file import UnreadableFile
from rewardloop_trainer.assessment.reward_models.bag_of_words import Preference, fit_bag_of_words
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.preferences import Pair, Record, pairs_of
from rewardloop_trainer.data.validation import validation_part
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.evaluate import Floats, correctness, pair_margins
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

SIZES = (100, 300, 1_000, 3_000, 9_000)
# As the demo sets them for its model of a million parameters.
DEMO_RATES = {"learning_rate": 3e-4, "head_learning_rate": 1e-3}
_RESAMPLES = 1_000
_LEAST_CLUSTERS = 20


@dataclass(frozen=True)
class Model:
    """A new reward model on a world's base."""

    model: RewardModel
    encoder: Encoder


def new_model(world: World, work: Path, max_length: int, seed: int, *, learns: bool) -> Model:
    base = minilm.fetch(work) if world.starter is None else world.starter / "reward-base"
    kind = RewardModel if learns or world.starter is not None else RememberingModel
    model = kind.from_base(base, seed=seed)
    tokenizer = load_tokenizer(str(base))
    layout = reward_layout(tokenizer, model)
    return Model(model, Encoder(tokenizer.backend_tokenizer, layout.text_format, max_length))


def figure(right: Floats, pairs: Sequence[Pair]) -> str:
    """The mean with a 95% bootstrap interval over prompts, or over pairs if there are few prompts."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(p.prompt for p in pairs))}
    many = len(prompts) >= _LEAST_CLUSTERS
    cluster = np.array([prompts[p.prompt] if many else i for i, p in enumerate(pairs)])
    totals, sizes = np.bincount(cluster, right), np.bincount(cluster)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (_RESAMPLES, len(sizes)))
    low, high = np.quantile(totals[drawn].sum(1) / sizes[drawn].sum(1), (0.025, 0.975))
    return f"{right.mean():.3f} [{low:.3f}, {high:.3f}]"


def baseline(learned: Sequence[Record], test: Sequence[Pair]) -> Floats:
    """The margins of a bag of words that learned the same signals."""
    fitted = fit_bag_of_words([_preference(pair) for pair in pairs_of(learned)])
    return np.array([fitted.margin(_preference(pair)) for pair in test])


def _preference(pair: Pair) -> Preference:
    return Preference(repr(pair.prompt), pair.chosen, pair.rejected)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def curve(name: str, seed: int, world: World, asked: argparse.Namespace, work: Path) -> None:
    """Print a line for each size and each test of the world."""
    rates = {} if world.starter is None else DEMO_RATES
    changed = {} if asked.epochs is None else {"epochs": asked.epochs}
    settings = RewardTraining.model_validate({**rates, **changed, "seed": seed, "checkpoint_every_steps": 0})
    sizes = [size for size in asked.sizes if size < len(world.train)]
    for size in [*sizes, *([len(world.train)] if len(sizes) < len(asked.sizes) else [])]:
        learned = world.train[:size]
        begun = cpu_seconds()
        ours = new_model(world, work, asked.max_length, seed, learns=settings.epochs > 0)
        train, validated = validation_part(learned, settings.share_apart)
        train_reward(ours.model, ours.encoder, train, validated, settings)
        taken = cpu_seconds() - begun
        for test, pairs in world.tests.items():
            length = np.array([math.log((len(p.chosen) + 1) / (len(p.rejected) + 1)) for p in pairs])
            right = correctness(pair_margins(ours.model, ours.encoder, pairs))
            shorter = length < 0
            print(
                f"| {test} | {seed} | {size:,} | {correctness(length).mean():.3f} | "
                f"{figure(correctness(baseline(learned, pairs)), pairs)} | {figure(right, pairs)} | "
                f"{right[shorter].mean():.3f} | {'-' if math.isnan(world.ceiling) else f'{world.ceiling:.3f}'} | "
                f"{taken:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=["demo"], help="whose signals")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="directory of people's data")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="numbers of signals")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the split, the models and the users")
    parser.add_argument("--epochs", type=int, default=None, help="passes of the trunk (default: the trainer's)")
    parser.add_argument("--max-length", type=int, default=256, help="most tokens of prompt and response")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own)")
    parser.add_argument("--work", type=Path, default=None, help="where models and the demo's answers are kept")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    print(
        "| test | seed | signals | length | bag of words [95%] | ours [95%] | where the shorter won | ceiling | CPU s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with options.work_directory(asked.work) as work:
        for name in asked.worlds:
            for seed in asked.seeds:
                try:
                    world = WORLDS[name](seed, work, asked.shared)
                except UnreadableFile as absent:
                    print(f"skipped {name}: {absent}; name the directory of people's data with --shared")
                    break
                curve(name, seed, world, asked, work)


if __name__ == "__main__":
    main()
