"""Against TRL: DPO, online DPO and reward training on the same data, weights, batch, steps and cores. How long, and to
what loss?

Both start from the same random Llama and learn from the same seeded pairs, in float32, with AdamW of the same rate,
betas and clipping, linear decay, no dropout and no gradient checkpointing (TRL's default is to checkpoint;
`--checkpoint` gives it that). DPO: sigmoid loss, the reference's log-probabilities computed before the first step in
both. A run is timed from texts to trained weights. The libraries take turns and the first one changes with the seed.
CPU time is that of all threads: on a busy machine it says more than wall time. The order of the pairs differs, as each
library has its own, so a step's loss is of other pairs: curves are compared after smoothing, and weights by held-out
pairs. Online DPO answers the prompts twice, 64 tokens at most, and likes what has the larger share of the tokens that
chosen answers have; its held-out figures are that share before and after.

Run it with an interpreter that has the extra named parity: `OMP_WAIT_POLICY=passive python tests/bench/trl_speed.py`
(threads that wait by spinning would count as CPU time).
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import dataclasses
import importlib.util
import logging
import os
import pstats
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerFast
from trl_world import END, FIRST, LONGEST, PAD, encoder_of, pairs_of, start_of

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import DpoProgress, encode_pairs, train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings, RewardShaping
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Sampling, roll_out
from rewardloop_trainer.reward.examples import encode_records, logits_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward


@dataclass
class Run:
    """``losses``: of each step. ``heldout``: loss and accuracy on held-out pairs; of online DPO the score before and
    after. ``padded``: positions that went through the trunk with and without gradients."""

    wall: float = 0.0
    cpu: float = 0.0
    losses: list[float] = field(default_factory=list)
    heldout: tuple[float, float] = (0.0, 0.0)
    padded: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})


@dataclass(frozen=True)
class World:
    """One seed's pairs and the options of the whole measurement."""

    train: list[Pair]
    heldout: list[Pair]
    encoder: Encoder
    seed: int
    options: argparse.Namespace


def timed(work: Callable[[], None], trunk: Any, run: Run, profile: cProfile.Profile | None) -> None:
    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        run.padded[torch.is_grad_enabled()] += ids.numel()

    handle = trunk.register_forward_pre_hook(count, with_kwargs=True)
    wall, cpu = time.perf_counter(), time.process_time()
    if profile is None:
        work()
    else:
        profile.runcall(work)
    run.wall, run.cpu = time.perf_counter() - wall, time.process_time() - cpu
    handle.remove()


def ours(kind: str, start: Any, world: World, profile: cProfile.Profile | None = None) -> Run:
    options, run = world.options, Run()
    if kind == "dpo":
        model = copy.deepcopy(start)
        dpo = DpoSettings(
            beta=options.beta,
            sft_weight=0.0,
            epochs=options.epochs,
            learning_rate=options.rate,
            warmup_share=0.0,
            batch_pairs=options.batch,
            micro_batch_tokens=options.tokens,
            seed=world.seed,
        )

        def learn() -> None:
            control = RunControl[DpoProgress, Any](on_step=lambda done: run.losses.append(done.figures.loss))
            train_policy(model, world.encoder, world.train, [], dpo, control)

        timed(learn, model.model, run, profile)
        run.heldout = heldout_dpo(model, start, world)
        return run
    if kind == "online-dpo":
        model = copy.deepcopy(start)
        online = OnlineSettings(
            steps=options.epochs * len(world.train) // options.batch,
            prompts=options.batch,
            responses=2,
            max_new_tokens=_NEW_TOKENS,
            minibatch=2 * options.batch,
            learning_rate=options.rate,
            warmup_share=0.0,
            micro_batch_tokens=options.tokens,
            rewards=RewardShaping(missing_end_penalty=0.0, empty_score=0.0),
            checkpoint_every_steps=0,
        )
        algorithm = algorithm_of("online-dpo", online, DpoSettings(beta=options.beta, sft_weight=0.0))
        task = OnlineTask(algorithm, online, [pair.prompt for pair in world.train])

        def score(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
            return [[Reward(even_share(text)) for text in group] for group in texts]

        def answer_and_learn() -> None:
            train_online(
                model,
                world.encoder,
                task,
                score,
                RunControl(on_step=lambda done: run.losses.append(done.figures["loss"])),
                seed=world.seed,
            )

        timed(answer_and_learn, model.model, run, profile)
        run.heldout = heldout_scores(model, start, world)
        return run
    with tempfile.TemporaryDirectory() as directory:
        start.save_pretrained(directory)
        scorer = RewardModel.from_base(directory, heads=1)
    reward = RewardTraining(
        epochs=options.epochs,
        learning_rate=options.rate,
        head_learning_rate=options.rate,
        weight_decay=0.0,
        warmup_share=0.0,
        sequences_per_step=2 * options.batch,
        bootstrap="none",
        centring=0.0,
        seed=world.seed,
    )

    def learn_reward() -> None:
        train_reward(scorer, world.encoder, world.train, [], reward, None, lambda p: run.losses.append(p.loss))

    timed(learn_reward, scorer.trunk, run, profile)
    examples = encode_records(world.encoder, world.heldout).examples
    with torch.no_grad():
        logits = logits_of(scorer, [s for e in examples for s in e.sequences], 0, 2048)
    run.heldout = judged(logits.view(-1, 2).diff(dim=1).neg())
    return run


def theirs(kind: str, start: Any, world: World, profile: cProfile.Profile | None = None) -> Run:
    import trl
    from datasets import Dataset
    from transformers import PrinterCallback

    options, run = world.options, Run()
    model = copy.deepcopy(start)
    read: list[list[int]] = []
    texts: dict[str, list[str]] = {
        "prompt": [pair.prompt[0].content for pair in world.train],
        "chosen": [pair.chosen for pair in world.train],
        "rejected": [pair.rejected for pair in world.train],
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=world.encoder.tokenizer, eos_token=END, pad_token=PAD)
    tokenizer.backend_tokenizer.encode_special_tokens = False  # TRL writes the end as text
    with tempfile.TemporaryDirectory() as directory:
        chosen: dict[str, Any] = {
            "output_dir": directory,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": options.checkpoint,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "num_train_epochs": options.epochs,
            "per_device_train_batch_size": options.trl_pairs,
            "gradient_accumulation_steps": options.batch // options.trl_pairs,
            "learning_rate": options.rate,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "seed": world.seed,
        }

        def work() -> None:
            data = Dataset.from_dict(texts)
            if kind == "online-dpo":
                from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

                args = OnlineDPOConfig(
                    **chosen,
                    beta=options.beta,
                    adam_beta2=0.95,
                    max_new_tokens=_NEW_TOKENS,
                    max_length=LONGEST,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                )
                trainer: Any = OnlineDPOTrainer(
                    model,
                    reward_funcs=lambda prompts, completions, **_: [even_share(text) for text in completions],
                    args=args,
                    processing_class=tokenizer,
                    train_dataset=data.select_columns(["prompt"]),
                )
            elif kind == "dpo":
                args = trl.DPOConfig(**chosen, beta=options.beta, adam_beta2=0.95, precompute_ref_log_probs=True)
                trainer = trl.DPOTrainer(model, args=args, processing_class=tokenizer, train_dataset=data)
            else:
                args = trl.RewardConfig(**chosen)
                trainer = trl.RewardTrainer(model, args=args, processing_class=tokenizer, train_dataset=data)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            run.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
            if kind == "online-dpo":
                return
            read.extend((row.get("prompt_ids", []) + row["chosen_ids"]) for row in trainer.train_dataset)

        timed(work, model.model, run, profile)
    world.encoder.tokenizer.encode_special_tokens = True
    if kind == "online-dpo":
        run.heldout = heldout_scores(model.eval(), start, world)
        return run
    if read != [example.sequences[0].ids for example in encode_records(world.encoder, world.train).examples]:
        raise ValueError("the libraries do not read the same tokens")
    model.eval()
    if kind == "dpo":
        run.heldout = heldout_dpo(model, start, world)
        return run
    examples = encode_records(world.encoder, world.heldout).examples
    with torch.no_grad():
        rows = [
            model(torch.tensor([s.ids]), attention_mask=torch.ones(1, len(s.ids))).logits
            for e in examples
            for s in e.sequences
        ]
    run.heldout = judged(torch.cat(rows).view(-1, 2).diff(dim=1).neg())
    return run


def heldout_dpo(model: Any, start: Any, world: World) -> tuple[float, float]:
    rows = [row for pair in encode_pairs(world.encoder, world.heldout).pairs for row in (pair.chosen, pair.rejected)]
    ratio = sequence_logprobs(model, rows, 0, 2048) - sequence_logprobs(start, rows, 0, 2048)
    return judged(world.options.beta * ratio.view(-1, 2).diff(dim=1).neg())


def even_share(text: str) -> float:
    tokens = [ord(each) - FIRST for each in text if ord(each) >= FIRST]
    return sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))


def heldout_scores(model: Any, start: Any, world: World) -> tuple[float, float]:
    """Mean score of answers to the held-out prompts, of the start and of what was trained."""
    prompts = [pair.prompt for pair in world.heldout]
    said = [roll_out(each, world.encoder, prompts, Sampling(1, _NEW_TOKENS, world.seed)) for each in (start, model)]
    before, after = (statistics.fmean(even_share(rollout.text) for (rollout,) in groups) for groups in said)
    return before, after


def judged(margins: torch.Tensor) -> tuple[float, float]:
    return -logsigmoid(margins).mean().item(), (margins > 0).float().mean().item()


def smoothed(losses: Sequence[float], width: int = 8) -> list[float]:
    return [statistics.fmean(losses[max(0, i + 1 - width) : i + 1]) for i in range(len(losses))]


KINDS = ("dpo", "online-dpo", "reward")
_NEW_TOKENS = 64

# Rows of a profile, by file and functions: cumulative times of calls that do not nest.
PARTS = {
    "ours": {
        "texts to tokens": ("trainer", "encode_pairs encode_records"),
        "passes without gradients": ("completions.py", "sequence_logprobs"),
        "forward and loss": ("rewardloop_trainer", "token_logprobs logits_of step_loss"),
    },
    "TRL": {
        "texts to tokens": ("_trainer.py", "_prepare_dataset"),
        "passes without gradients": ("_trainer.py", "_precompute_ref_logps"),
        "forward and loss": ("_trainer.py", "compute_loss"),
    },
}


def spent(profile: cProfile.Profile, file: str, functions: str) -> float:
    """Cumulative CPU seconds."""
    found: Any = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    names = functions.split()
    return float(sum(row[3] for (path, _, name), row in found.items() if file in path and name in names))


def explain(library: str, run: Run, profile: cProfile.Profile, world: World) -> None:
    examples = encode_records(world.encoder, world.train).examples
    real = world.options.epochs * sum(len(s.ids) for e in examples for s in e.sequences)
    parts = {name: spent(profile, *where) for name, where in PARTS[library].items()}
    if library == "ours":
        parts["forward and loss"] -= parts["passes without gradients"]  # those call token_logprobs too
    parts["backward"] = spent(profile, "torch/_tensor.py", "backward")
    parts["optimizer"] = spent(profile, "torch/optim/adamw.py", "step") + spent(profile, "torch/optim/adam.py", "step")
    parts["the rest"] = run.cpu - sum(parts.values())
    print(f"  {library}: {run.padded[True]:,} positions with gradients for {real:,} real tokens")
    print(f"    ({real / run.padded[True]:.2f} of them text), {run.padded[False]:,} without")
    print("    " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items()))


def compare(kind: str, worlds: Sequence[World], options: argparse.Namespace) -> None:
    libraries = {"ours": ours, "TRL": theirs}
    runs: dict[str, list[Run]] = {name: [] for name in libraries}
    for number, world in enumerate(worlds):
        start = start_of(kind, options, world.seed)
        for name in sorted(libraries, reverse=bool(number % 2)):
            run = libraries[name](kind, start, world)
            runs[name].append(run)
            print(
                f"{kind} seed {world.seed} {name:4}: {run.wall:6.1f} s, CPU {run.cpu:6.1f} s, {len(run.losses)} steps, "
                f"loss {run.losses[0]:.3f} to {smoothed(run.losses)[-1]:.3f}, "
                f"held out {run.heldout[0]:.3f}, accuracy {run.heldout[1]:.3f}",
                flush=True,
            )
    curves = {name: [smoothed(run.losses) for run in found] for name, found in runs.items()}
    gaps = [
        statistics.fmean(abs(a - b) for a, b in zip(mine, other, strict=True))
        for mine, other in zip(curves["ours"], curves["TRL"], strict=True)
    ]
    print(f"{kind}: mean |difference| of smoothed losses by seed: {', '.join(f'{gap:.4f}' for gap in gaps)}")
    means = {name: [statistics.fmean(step) for step in zip(*found, strict=True)] for name, found in curves.items()}
    between = statistics.fmean(abs(a - b) for a, b in zip(means["ours"], means["TRL"], strict=True))
    print(f"{kind}: mean |difference| of the curves' means over seeds: {between:.4f}")
    if len(worlds) > 1:
        for name, found in curves.items():
            spread = statistics.fmean(statistics.stdev(step) for step in zip(*found, strict=True))
            print(f"{kind}: deviation over seeds of {name}'s curve: {spread:.4f}")
    for what in ("wall", "cpu"):
        ratios = [getattr(a, what) / getattr(b, what) for a, b in zip(runs["ours"], runs["TRL"], strict=True)]
        shown = ", ".join(f"{r:.2f}" for r in ratios)
        print(f"{kind}: {what} time, ours / TRL: {shown}; median {statistics.median(ratios):.2f}", flush=True)
    start = start_of(kind, options, worlds[0].seed)
    half = dataclasses.replace(worlds[0], train=worlds[0].train[: options.pairs // 2])
    print(f"{kind}: CPU time under a profiler, half of the pairs of seed {half.seed}")
    for name, train in libraries.items():
        profile = cProfile.Profile(time.process_time)
        explain(name, train(kind, start, half, profile), profile, half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="pairs in an optimizer step")
    parser.add_argument("--trl-pairs", type=int, default=8, help="TRL's per-device batch; the rest is accumulated")
    parser.add_argument("--tokens", type=int, default=8192, help="our padded tokens in a forward pass of DPO")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--vocabulary", type=int, default=2_000)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", action="store_true", help="TRL checkpoints gradients, as by default")
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("skipped: TRL is not installed here; it is in the extra named parity: pip install -e '.[parity]'")
        return
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    torch.set_num_threads(options.threads)
    encoder = encoder_of(options.vocabulary)
    worlds = []
    for seed in range(options.seeds):
        chance = random.Random(seed)
        train = pairs_of(options.pairs, options.vocabulary, chance)
        worlds.append(World(train, pairs_of(128, options.vocabulary, chance), encoder, seed, options))
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    warm = World(worlds[0].train[: options.batch], worlds[0].heldout[:4], encoder, 0, options)
    for kind in options.kinds:
        start = start_of(kind, options, 0)
        for train_once in (ours, theirs):
            train_once(kind, start, warm)
        compare(kind, worlds, options)


if __name__ == "__main__":
    main()
