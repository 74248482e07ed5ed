"""The models, texts and figures that the cases of gpu.py share. Weights are random, made on the CPU, and seeded."""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import MODEL, Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.plan import Run
from rewardloop_trainer.export import graph
from rewardloop_trainer.export.parity import export_reward
from rewardloop_trainer.export.precision import convert
from rewardloop_trainer.reward.model import RewardModel as TorchRewardModel

Family = Literal["bert", "llama", "qwen2"]
Precision = Literal["float32", "float16", "bfloat16"]
PAD = 0
_ADAPTED = ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj")
_RANK = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A model.

    Attributes:
        name: How it is called in the output.
        layers: Layers.
        width: Width of the hidden states; a head of attention has 64 of it, or 16 of widths below 128.
        vocabulary: Token ids.
        max_length: Positions.
    """

    name: str
    layers: int
    width: int
    vocabulary: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much one run of gpu.py does.

    Attributes:
        encoder_rows: Rows and tokens of a run of an encoder.
        tree: Tokens of a prompt, responses, and tokens of each.
    """

    small: Shape
    large: tuple[Shape, ...]
    run_tokens: tuple[int, ...]
    square: int
    copy_bytes: int
    seconds: float
    callers: int
    shapes: int
    policy_tokens: int
    encoder_rows: tuple[int, int]
    tree: tuple[int, int, int]


REAL = Sizes(
    small=Shape("tiny", 2, 128, 1_000, 512),
    large=(Shape("100M", 12, 768, 32_000, 32_768), Shape("0.4B", 24, 1_024, 50_000, 32_768)),
    run_tokens=(512, 2_048, 8_192, 32_768),
    square=8_192,
    copy_bytes=2**30,
    seconds=3.0,
    callers=64,
    shapes=200,
    policy_tokens=256,
    encoder_rows=(32, 512),
    tree=(1_024, 16, 128),
)
TINY = Sizes(
    small=Shape("tiny", 2, 64, 300, 128),
    large=(Shape("tiny decoder", 2, 64, 300, 512),),
    run_tokens=(64, 256),
    square=256,
    copy_bytes=2**20,
    seconds=0.2,
    callers=8,
    shapes=20,
    policy_tokens=16,
    encoder_rows=(4, 64),
    tree=(40, 4, 16),
)


class World:
    """What a run of gpu.py works on.

    Args:
        device: Where sessions run.
        sizes: How much is done.
        work: A directory for models.
    """

    def __init__(self, device: Device, sizes: Sizes, work: Path) -> None:
        self.device = device
        self.sizes = sizes
        self._work = work
        self.torch_device = torch.device("cpu" if device.kind == "cpu" else "cuda")

    @property
    def is_gpu(self) -> bool:
        """Whether sessions run on a GPU."""
        return self.device.kind != "cpu"

    @cache  # noqa: B019  # a world lives as long as the process
    def torch_model(self, family: Family, shape: Shape) -> TorchRewardModel:
        """Return the model in float32 on the CPU."""
        torch.manual_seed(0)
        heads = max(1, shape.width // (64 if shape.width >= 128 else 16))
        options: dict[str, Any] = {
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": heads,
            "intermediate_size": shape.width * 4,
            "max_position_embeddings": shape.max_length,
            "pad_token_id": PAD,
        }
        if family != "bert":
            options["num_key_value_heads"] = heads
        trunk = AutoModel.from_config(AutoConfig.for_model(family, **options))
        return TorchRewardModel(trunk, 1, "cls" if family == "bert" else "last", None).eval()

    @cache  # noqa: B019
    def version(
        self, family: Family, shape: Shape, precision: Precision, masks: bool = False
    ) -> tuple[ModelStore, Manifest]:
        """Export the model, converted to a precision; a decoder with adapter inputs, an encoder with masks if asked."""
        words = {"[PAD]": PAD, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        if family == "bert":
            layout = TextFormat.for_encoder(tokenizer, segment_ids=True)
        else:
            layout = TextFormat.for_decoder(tokenizer, eos_id=1, bos_id=1, pad_id=PAD)
        name = f"{family}-{shape.name}-{precision}{'-masks' if masks else ''}"
        store = ModelStore(self._work / name.replace(" ", "-"))
        if numbers := store.versions("reward"):
            return store, store.manifest("reward", min(numbers))

        def write(target: Path) -> None:
            adapters = () if family == "bert" else _ADAPTED
            with patch.object(graph, "take_lengths", lambda _: 0) if masks else nullcontext():
                export_reward(self.torch_model(family, shape), tokenizer, layout, target, adapters=adapters)
            convert(target / MODEL, precision)

        manifest = Manifest(
            model="reward", text_format=layout.to_json(), max_length=shape.max_length, heads=1, precision=precision
        )
        return store, store.publish(manifest, write)

    @contextmanager
    def loaded(
        self,
        family: Family,
        shape: Shape,
        precision: Precision = "float32",
        device: Device | None = None,
        masks: bool = False,
    ) -> Iterator[RewardModel]:
        """Load the version as the service does, and close it with the block."""
        store, manifest = self.version(family, shape, precision, masks)
        pool = SessionPool(store, device or self.device, ServerMetrics())
        model = pool.load(manifest, store.fetch("reward", manifest.version))
        try:
            yield model
        finally:
            model.close()

    def with_tf32(self) -> Device:
        """Return the device with TF32 allowed."""
        return replace(self.device, tf32=True)


def rows_of(shape: Shape, count: int, tokens: int, seed: int = 0) -> list[Encoded]:
    """Return sequences of exactly so many tokens, each without a shared prompt."""
    chance = random.Random(seed)
    return [Encoded(_ids(shape, tokens, chance), None, truncated=False) for _ in range(count)]


def plain_run(rows: int, length: int) -> Run:
    """Return the run of so many rows, each alone, in as many columns as the longest has tokens."""
    return Run(tuple((row,) for row in range(rows)), length, 0.0)


def group_of(shape: Shape, prompt: int, responses: int, tokens: int, seed: int = 0) -> list[Encoded]:
    """Return the sequences of one group, which share a prompt."""
    chance = random.Random(seed)
    shared = _ids(shape, prompt, chance)
    return [
        Encoded([*shared, *_ids(shape, tokens, chance)], None, truncated=False, prompt_tokens=prompt)
        for _ in range(responses)
    ]


def _ids(shape: Shape, tokens: int, chance: random.Random) -> list[int]:
    return [chance.randrange(2, shape.vocabulary) for _ in range(tokens)]


def adapter_of(model: RewardModel) -> dict[str, npt.NDArray[np.float32]]:
    """Return random values for each adapter input of a graph."""
    draw = np.random.default_rng(0)
    return {
        each.name: draw.normal(
            size=[size if isinstance(size, int) and size else _RANK for size in each.shape], scale=0.1
        ).astype(np.float32)
        for each in model._sessions.alone.get_overridable_initializers()
    }


def per_second(world: World, work: Callable[[], object], seconds: float | None = None) -> float:
    """Return how often a second ``work`` is done, after two times that do not count."""
    for _ in range(2):
        work()
    synchronise(world)
    times = 0
    limit = world.sizes.seconds if seconds is None else seconds
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < limit or not times:
        work()
        times += 1
        synchronise(world)
    return times / took


def synchronise(world: World) -> None:
    """Wait for what torch has started on the GPU."""
    if world.torch_device.type == "cuda":
        torch.cuda.synchronize()


def memory_mb(world: World) -> float:
    """Return the megabytes that are in use: of the GPU, or of this process."""
    if world.is_gpu:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    p50, p99 = np.quantile(np.array(values) * 1e3, (0.5, 0.99))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


@contextmanager
def printed() -> Iterator[Callable[[], str]]:
    """Catch what the block's libraries print on standard output; the function gives it after the block."""
    flush = ctypes.CDLL(None).fflush
    kept: list[str] = []
    with tempfile.TemporaryFile("w+b") as file:
        flush(None)
        before = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            yield lambda: kept[0]
        finally:
            flush(None)
            os.dup2(before, 1)
            os.close(before)
            file.seek(0)
            kept.append(file.read().decode(errors="replace"))
