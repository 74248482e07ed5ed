"""Trains small policies, alone or as one of torchrun's processes: ``torchrun_training.py DIRECTORY ALGORITHM..``.

``shard-`` before a name divides the model among the processes. ``bytes`` counts what a process holds of it, and
``sums`` trains nothing: it sums gradients, and writes ``sums.json``.

The reward is computed here, from the text. Writes ``<algorithm>/figures.json`` (of each step that this call ran) and
``<algorithm>/model.safetensors``. After the third step ``<algorithm>/pid.<rank>`` is there, and where ``wait`` is
beside it the process goes no further: who started it may kill one.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors.torch import save_model
from transformers import AutoModel

from rewardloop.formats.text import Encoder, Turn
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.computing.shards import local
from rewardloop_trainer.data.dialogues import Dialogue, encode_dialogues
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList
from rewardloop_trainer.learning import world as processes
from rewardloop_trainer.learning.layers import recompute_layers
from rewardloop_trainer.learning.live_bytes import LiveBytes
from rewardloop_trainer.learning.lora_layers import add_adapters
from rewardloop_trainer.learning.model_load import divide_causal_lm
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.learning.world import World, joined
from rewardloop_trainer.policy.dpo_train import DpoProgress, encode_pairs, train_policy
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.sft import SftRun, train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward
from support.learning_runs import THREADS, learning_seed
from support.policy_versions import byte_encoder, small_llama
from support.reward_bases import config as reward_config
from support.reward_bases import encoder_for

PROMPTS: list[Prompt] = [(Turn("user", word),) for word in ("up", "down", "left", "over there", "right")]
PAIRS = [Pair(prompt, "aye " * (1 + i), "no", event_id=str(i)) for i, prompt in enumerate(PROMPTS)]
THUMBS = [
    Labelled(pair.prompt, text, label) for pair in PAIRS for text, label in ((pair.chosen, 1.0), (pair.rejected, 0.0))
]
LORA = LoraSettings.model_validate({"rank": 2, "modules": "all"})
OFTEN = {"checkpoint_every_steps": 2}
Keep: TypeAlias = Callable[[int, dict[str, float]], None]
Save: TypeAlias = Callable[[Any], None]
SETTINGS = OnlineSettings.model_validate(
    {
        "steps": 6,
        "prompts": 3,  # over two processes: two and one
        "responses": 3,
        "max_new_tokens": 6,
        "epochs": 2,
        "minibatch": 4,
        "learning_rate": 3e-3,
        "beta": 0.05,
        "max_update_kl": 100.0,
        "max_kl": 1000.0,
        "micro_batch_tokens": 64,
        "checkpoint_every_steps": 2,
        "rewards": {"normalise": True},
        "critic": {"warmup_steps": 1},
    }
)


def vowels(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(sum(c in "aeiou" for c in t) - 0.1 * len(t)) if t.strip() else None for t in g] for g in texts]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes behind tensors, which may share them, in this process."""
    storages = [local(tensor).untyped_storage() for tensor in tensors if not tensor.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def count_bytes(model: Any, encoder: Encoder, directory: Path) -> None:
    """Take two steps of supervised training, and write what this process then holds of the model.

    ``held`` are the bytes of weights, gradients and moments, ``alive`` those of all tensors in the process.
    """
    settings = SftSettings.model_validate({"batch_examples": 5, "epochs": 2})
    examples, _ = encode_dialogues(encoder, [Dialogue.answered(pair.prompt, pair.chosen) for pair in PAIRS])
    run = SftRun(model, encoder, examples, (), settings, None)
    for _ in range(2):
        run._learn(examples)
    states = [s for p in run.parameters for s in run.optimizer.state[p].values() if s.ndim]
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    gc.collect()
    alive = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    found = {
        "values": sum(p.numel() for p in run.parameters),
        "held": storage_bytes((*run.parameters, *gradients, *states)),
        "alive": storage_bytes(alive),
    }
    (directory / f"bytes.{World().rank}.json").write_text(json.dumps(found))


def train_by_supervision(model: Any, encoder: Encoder, directory: Path, keep: Keep, save: Save) -> None:
    settings = SftSettings.model_validate(
        {"batch_examples": 4, "epochs": 3, "learning_rate": 1e-3, "micro_batch_tokens": 64, **OFTEN}
    )
    dialogues = [Dialogue.answered(pair.prompt, pair.chosen) for pair in PAIRS]
    heldout = [Dialogue.answered(pair.prompt, pair.rejected) for pair in PAIRS]
    outcome = train_sft(
        model,
        encoder,
        dialogues,
        settings,
        lambda done: keep(done.step, {"loss": done.loss}),
        heldout=heldout,
        checkpoint_dir=directory / "checkpoints",
    )
    keep(0, {"before": outcome.perplexity_before, "after": outcome.perplexity_after})
    if World().is_first:
        save(model)


def train_a_reward_model(name: str, directory: Path, keep: Keep, save: Save) -> None:
    """Train as "reward", as "reward-full-bound" with every sequence in memory at once, or as "reward-dropout"."""
    kind = "llama" if "dropout" in name else "bert"
    torch.manual_seed(learning_seed())
    model = RewardModel(AutoModel.from_config(reward_config(kind)), 2, "last" if kind == "llama" else "mean").eval()
    if name.endswith("-lora"):
        with_lora(model, LORA)
    changes = {
        "sequences_per_step": 10,
        "epochs": 3,
        "learning_rate": 1e-3,
        "micro_batch_tokens": 8192 if "full-bound" in name else 300,
        "dropout": "dropout" in name,
        "shard": name.startswith("shard-") and World().size > 1,
        **OFTEN,
    }
    records = [*PAIRS, RankedList(PROMPTS[0], ("aye aye", "aye", "well", "no"), event_id="r"), *THUMBS]
    outcome = train_reward(
        model,
        encoder_for(kind, 96),
        records,
        PAIRS,
        RewardTraining.model_validate(changes),
        directory / "checkpoints",
        lambda done: keep(done.step, {"loss": done.loss, "norm": done.gradient_norm}),
    )
    keep(0, {"loss": outcome.validation.loss})
    if World().is_first:
        save(model)


def sum_gradients(directory: Path) -> None:
    """Sum gradients in buckets of 1,000 values, and write what was sent and what memory it took."""
    world, sent, on_their_way = World(), list[int](), list[int]()
    shapes = [(7, 11), (2_500,), (300,), (300, 2), (90,), (3, 1_000), (5,), (40, 30)]
    # The first has a gradient in the first process alone, the third in none, and the last one is not contiguous.
    learning = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for place, parameter in enumerate(learning):
        if place != 2 and (place != 0 or world.is_first):
            values = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter) + 10 * world.rank
            parameter.grad = values.T.contiguous().T if place == 7 else values
    expected = [p.grad.clone() for p in learning if p.grad is not None]
    all_reduce = processes.dist.all_reduce

    class Counted:
        def __init__(self, work: Any, size: int) -> None:
            self.work, self.size = work, size

        def wait(self) -> None:
            self.work.wait()
            on_their_way.remove(self.size)

    def counted(values: torch.Tensor, *args: Any, async_op: bool = False) -> Any:
        if not async_op:
            return all_reduce(values, *args)
        on_their_way.append(values.nbytes)
        sent.append(sum(on_their_way))
        return Counted(all_reduce(values, *args, async_op=True), values.nbytes)

    cast(Any, processes).BUCKET_VALUES = 1_000
    processes.dist.all_reduce = counted
    try:
        with LiveBytes() as live:
            world.sum_gradients(learning)
    finally:
        processes.dist.all_reduce = all_reduce
    found = [p.grad for p in learning if p.grad is not None]
    if world.is_first:
        wanted = [expected[0], *(2 * each + 10 for each in expected[1:])]
        about = {
            "are_sums": all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True)),
            "without": [place for place, p in enumerate(learning) if p.grad is None],
            "most_sent_at_once": max(sent),
            "left": on_their_way,
            "peak": live.peak,
            "whole": sum(p.numel() * 4 for p in learning),
        }
        (directory / "sums.json").write_text(json.dumps(about))


def prepared(model: Any, name: str) -> str:
    """Prepare a causal LM as a name such as "shard-dpo-lora" says; one process divides nothing. Returns the trainer."""
    if "reward" in name:
        return name
    if name.endswith("-lora"):
        add_adapters(model, LORA)
    if name.endswith("-tied"):
        model.lm_head.weight = model.model.embed_tokens.weight
    if name.endswith("-recomputed"):
        recompute_layers(model.base_model)
    if name.startswith("shard-") and World().size > 1:
        divide_causal_lm(model, torch.device("cpu"))
    return re.sub("^shard-|-(lora|tied|recomputed)$", "", name)


def main(directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    world, model, encoder = World(), small_llama(learning_seed()), byte_encoder(64)
    history: list[tuple[int, dict[str, float]]] = []

    def keep(step: int, figures: dict[str, float]) -> None:
        history.append((step, figures))
        if step == 3:
            (directory / f"pid.{world.rank}").write_text(str(os.getpid()))
            while (directory / "wait").exists():
                time.sleep(0.02)

    def save(policy: Any) -> None:
        # A copy, which torch refuses of a model that is divided still.
        save_model(copy.deepcopy(policy), str(directory / "model.safetensors"))
        (directory / "figures.json").write_text(json.dumps(history))

    def on_step(done: StepDone) -> None:
        keep(done.step, dict(done.figures))

    def on_progress(done: DpoProgress) -> None:
        # Not the accuracy: before the first update rounding decides which of two equal rewards is higher.
        keep(done.step, {name: getattr(done.figures, name) for name in ("loss", "margin", "kl", "chosen_log_ratio")})

    def on_thumbs(done: KtoProgress) -> None:
        keep(done.step, {name: value for name, value in done.figures.named().items() if name != "accuracy"})

    checkpoints = directory / "checkpoints"
    name = prepared(model, name)
    if name == "dpo":
        dpo = DpoSettings.model_validate({"batch_pairs": 3, "epochs": 3, "learning_rate": 3e-3})
        train_policy(
            model, encoder, PAIRS, PAIRS[:1], dpo, RunControl(checkpoints, on_progress, save=lambda _: save(model))
        )
        return
    if name == "kto":
        kto = KtoSettings.model_validate({"batch_thumbs": 5, "epochs": 3, "learning_rate": 3e-3})
        train_kto(
            model, encoder, THUMBS, THUMBS[:2], kto, RunControl(checkpoints, on_thumbs, save=lambda _: save(model))
        )
        return
    if name == "sft":
        train_by_supervision(model, encoder, directory, keep, save)
        return
    if "reward" in name:
        train_a_reward_model(name, directory, keep, save)
        return
    if name == "bytes":
        count_bytes(model, encoder, directory)
        return
    if name == "sums":
        sum_gradients(directory)
        return
    online = cast(OnlineAlgorithm, name)
    human_pairs = encode_pairs(encoder, PAIRS).pairs if name == "online-dpo" else ()
    task = OnlineTask(algorithm_of(online, SETTINGS), SETTINGS, PROMPTS, human_pairs)
    control = RunControl(checkpoints, on_step, save=lambda outcome: save(outcome.model))
    train_online(model, encoder, task, vowels, control, seed=learning_seed())


if __name__ == "__main__":
    with joined():
        for algorithm in sys.argv[2:]:
            main(Path(sys.argv[1]) / algorithm, algorithm)
