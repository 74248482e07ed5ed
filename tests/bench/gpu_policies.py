"""The cases of gpu.py about policies: the trainer's steps and the policy worker's sampler."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from gpu_watch import Json
from gpu_world import PAD, Shape, World, decoder_layout, per_second, rounded, rows_of, tokenizer_of, torch_tf32
from transformers import AutoModelForCausalLM, LlamaConfig

from rewardloop.formats.text import Encoder, Turn
from rewardloop_sampling.running_batch import sample
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings

# Steps of training at most, pairs of each, and first steps that do not count.
_STEPS, _STEP_PAIRS, _UNCOUNTED = 64, 4, 2


def case_training(world: World) -> Iterator[Json]:
    """Optimizer steps a second of the trainer's DPO, by number format."""
    shape, chance = world.sizes.large[0], random.Random(0)
    tokenizer = tokenizer_of(shape)
    encoder = Encoder(tokenizer, decoder_layout(tokenizer), shape.max_length)
    pairs = [
        Pair((Turn("user", words(shape, world.sizes.policy_tokens // 4, chance)),), *answers)
        for _ in range(_STEPS * _STEP_PAIRS)
        for answers in [[words(shape, world.sizes.policy_tokens // 2, chance) for _ in range(2)]]
    ]
    settings = DpoSettings(batch_pairs=_STEP_PAIRS, checkpoint_every_steps=0)
    for name, policy in policies(world, shape):
        took: list[float] = []
        until = time.monotonic() + 4 * world.sizes.measure_s

        def on_step(progress: DpoProgress, took: list[float] = took) -> None:
            took.append(progress.seconds)

        def is_over(until: float = until, took: list[float] = took) -> bool:
            return len(took) > _UNCOUNTED and time.monotonic() > until

        with suppress(TrainingStopped):
            train_policy(policy, encoder, pairs, [], settings, RunControl(on_step=on_step, should_stop=is_over))
        yield rounded({f"{name}_dpo_steps_per_s": 1 / statistics.median(took[_UNCOUNTED:])})


def case_generate(world: World) -> Iterator[Json]:
    """Tokens a second of the policy worker's sampler, by number format: eight prompts, four answers to each."""
    shape, half = world.sizes.large[0], world.sizes.policy_tokens // 2
    requests = [SampleRequest(row.ids, 4, seed=n, max_new_tokens=half) for n, row in enumerate(rows_of(shape, 8, half))]
    for name, policy in policies(world, shape):
        policy.eval()
        rate = per_second(world, lambda p=policy: sample(p, requests, end_ids=(), pad_id=PAD))
        yield rounded({f"{name}_tokens_per_s": len(requests) * 4 * half * rate})


def policies(world: World, shape: Shape) -> Iterator[tuple[str, Any]]:
    """Yield a random policy in each number format, with the name of how it computes."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=shape.width * 4,
        max_position_embeddings=shape.max_length,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        if not tf32 or world.is_gpu:
            torch.manual_seed(0)
            with torch_tf32(tf32):
                yield name, AutoModelForCausalLM.from_config(config).to(world.torch_device, dtype)


def words(shape: Shape, count: int, chance: random.Random) -> str:
    """Return a text of so many tokens."""
    return " ".join(f"w{chance.randrange(4, shape.vocabulary)}" for _ in range(count))
