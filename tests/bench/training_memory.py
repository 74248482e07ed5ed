"""What training takes in memory: the peak of a process against the estimate, and the estimate for larger models.

    python tests/bench/training_memory.py --measure          # random models, each run in a process of its own
    python tests/bench/training_memory.py --table            # 0.5B, 1B and 8B, estimated

The measured peak is the process's largest resident set while it trains (VmHWM), with loading apart. It does not depend
on the values of the weights, so they are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.tiny_policies import tiny_tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.learning.memory_estimate import ERROR, Trainer, estimate_memory
from rewardloop_trainer.learning.model_load import set_type, type_of
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.learning.world import World, joined

GIB = 2**30
METHODS: dict[str, dict[str, Any]] = {
    "full, float32": {},
    "full, float32, shard": {"shard": True},
    "full, bfloat16 over float32": {"computation": "bfloat16"},
    "full, bfloat16": {"weights": "bfloat16"},
    "LoRA, bfloat16": {"method": "lora", "weights": "bfloat16"},
    "LoRA, bfloat16, gradient checkpointing": {
        "method": "lora",
        "weights": "bfloat16",
        "gradient_checkpointing": True,
    },
}
TRAINERS: tuple[Trainer, ...] = ("reward", "sft", "dpo")
# Widths and layers of random models; the vocabulary of the last one is half of its weights.
SHAPES: dict[str, dict[str, int]] = {
    "0.04B": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 16384},
    "0.13B": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 32768},
    "0.35B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 16, "vocab_size": 65536},
}
TOKENS, LONGEST = 1024, 256
PROCESSES = 2  # of torchrun, if a method divides the model among several
LARGE: dict[str, Any] = {
    "0.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "1B": Qwen3Config(  # Llama 3.2 1B's widths
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "8B": Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}


def config_of(shape: dict[str, int]) -> Qwen3Config:
    heads = shape["hidden_size"] // 64
    positions = {"max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen3Config(
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        tie_word_embeddings=False,
        **shape,
        **positions,
    )


def settings_of(method: str) -> LearnerSettings:
    return LearnerSettings.model_validate({"device": "cpu", **METHODS[method]})


def pairs(count: int) -> list[Pair]:
    """Pairs whose sequences have about `LONGEST` tokens, a byte each."""
    prompt = "why is that so? " * 6
    return [
        Pair((Turn("user", f"{prompt}{i}"),), "because of it. " * 9, "who knows now? " * 9, event_id=str(i))
        for i in range(count)
    ]


def train(base: str, trainer: str, method: str, work: Path) -> None:
    """Load the model and train it. Processes that share it are started by torchrun."""
    with joined():
        train_alike(base, trainer, method, work)


def train_alike(base: str, trainer: str, method: str, work: Path) -> None:
    """Load the model, forget the peak of that, and take two optimizer steps, each of two micro-batches."""
    if trainer == "reward":
        from rewardloop.formats.store import ModelStore
        from rewardloop_trainer.reward.settings import RewardHyperparameters
        from rewardloop_trainer.reward.start import start_from
        from rewardloop_trainer.reward.train import train_reward
        from rewardloop_trainer.rounds.reward_candidate import choose_weights

        own = {"base": base, "max_length": 512, "sequences_per_step": 8, "micro_batch_tokens": TOKENS}
        settings = RewardHyperparameters.model_validate({"device": "cpu", **METHODS[method], **own})
        start = start_from(ModelStore(str(work / "store")), None, settings, 0)
        choose_weights(start, settings)
        set_type(start.model, type_of(settings))
        report(lambda: train_reward(start.model, start.encoder, pairs(8), [], settings))
        return
    from rewardloop_trainer.policy.dpo_train import train_policy
    from rewardloop_trainer.policy.offline_settings import DpoSettings
    from rewardloop_trainer.policy.sft import train_sft
    from rewardloop_trainer.policy.sft_settings import SftSettings
    from rewardloop_trainer.policy.start import load_to_learn, start_from_base

    encoder = start_from_base(base, 512).encoder
    kind = cast(Trainer, trainer)
    model = load_to_learn(base, settings_of(method), kind, tokens=TOKENS, longest=LONGEST)
    common = {"micro_batch_tokens": TOKENS, "checkpoint_every_steps": 0}
    if trainer == "dpo":
        dpo = DpoSettings.model_validate({**common, "batch_pairs": 4})
        report(lambda: train_policy(model, encoder, pairs(8), [], dpo))
        return
    rows = [Dialogue.answered(pair.prompt, pair.chosen) for pair in pairs(16)]
    sft = SftSettings.model_validate({**common, "batch_examples": 8})
    report(lambda: train_sft(model, encoder, rows, sft))


def report(run: Callable[[], object]) -> None:
    """Print the peaks of loading and of the run, in bytes."""
    loading = peak()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    run()
    found = World().gather([{"loading": loading, "training": peak()}])
    if World().is_first:
        print(json.dumps({name: max(each[name] for each in found) for name in found[0]}), flush=True)


def peak() -> int:
    about = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(about["VmHWM"].split()[0]) * 1024


def measured(shapes: Sequence[str], trainers: Sequence[str], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The peaks of each run in a process of its own, beside the estimate."""
    for shape in shapes:
        with tempfile.TemporaryDirectory() as directory:
            base = Path(directory) / "base"
            config = config_of(SHAPES[shape])
            AutoModelForCausalLM.from_config(config, dtype="bfloat16").save_pretrained(base)
            tiny_tokenizer().save_pretrained(base)
            for trainer in trainers:
                for method in methods:
                    settings = settings_of(method)
                    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
                    argv = [sys.executable, *(torchrun if settings.shard else ())]
                    argv += [__file__, "--one", str(base), trainer, method]
                    done = subprocess.run(argv, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise RuntimeError(done.stderr)
                    found = json.loads(done.stdout.splitlines()[-1])
                    estimate = estimated(config, method, cast(Trainer, trainer), TOKENS, LONGEST)
                    yield {"shape": shape, "trainer": trainer, "method": method, **found, "estimate": estimate}


def estimated(config: Any, method: str, trainer: Trainer, tokens: int, longest: int) -> int:
    """The bytes that a process takes."""
    settings, bounds = settings_of(method), {"tokens": tokens, "longest": longest}
    return estimate_memory(config, settings, trainer, **bounds, processes=PROCESSES).total


def show_measured(rows: Iterable[dict[str, Any]]) -> bool:
    """Print the rows. Returns whether each estimate is within a fifth of what was measured."""
    print("| model | trainer | method | loading, GiB | training, GiB | estimate, GiB | estimate / training |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    is_right = True
    for row in rows:
        ratio = row["estimate"] / row["training"]
        is_right = is_right and abs(ratio - 1) <= ERROR
        sizes = " | ".join(f"{row[name] / GIB:.2f}" for name in ("loading", "training", "estimate"))
        print(f"| {row['shape']} | {row['trainer']} | {row['method']} | {sizes} | {ratio:.2f} |", flush=True)
    return is_right


def show_table(tokens: int, longest: int) -> None:
    """Print the estimates for the larger models."""
    print(f"| method | {' | '.join(f'{size}, {trainer}' for size in LARGE for trainer in TRAINERS)} |")
    print("| --- |" + " --- |" * (len(LARGE) * len(TRAINERS)))
    for method in METHODS:
        found = [
            estimated(config, method, trainer, tokens, longest) for config in LARGE.values() for trainer in TRAINERS
        ]
        print(f"| {method} | {' | '.join(f'{total / GIB:.1f}' for total in found)} |", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--measure", action="store_true", help="compare estimates with processes")
    options.add_argument("--table", action="store_true", help="estimate larger models")
    options.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    options.add_argument("--trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options.add_argument("--tokens", type=int, default=8192, help="micro_batch_tokens of the table")
    options.add_argument("--longest", type=int, default=2048, help="tokens of the table's longest sequence")
    options.add_argument("--one", nargs=3, metavar=("BASE", "TRAINER", "METHOD"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if chosen.one:
        base, trainer, method = chosen.one
        train(base, trainer, method, Path(base).parent)
        return 0
    is_right = True
    if chosen.measure:
        is_right = show_measured(measured(chosen.shapes, chosen.trainers, chosen.methods))
    if chosen.table:
        show_table(chosen.tokens, chosen.longest)
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
