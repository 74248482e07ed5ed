"""The models, texts and figures that the cases of gpu.py share. Weights are random, made on the CPU, and seeded.

A graph is traced once for an architecture, and filled with the weights of each version. `prepare` traces beforehand: a
traced graph without weights has some hundred KB, whatever the model's size.
"""

from __future__ import annotations

import ctypes
import json
import math
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
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import MODEL, TOKENIZER, Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import GraphRunner, RewardModel
from rewardloop_server.scoring.plan import Run
from rewardloop_trainer.export import graph
from rewardloop_trainer.export.precision import convert
from rewardloop_trainer.export.weights import Graph, load_graph, write_graph
from rewardloop_trainer.reward.model import RewardModel as TorchRewardModel

Family = Literal["bert", "llama", "qwen2"]
Precision = Literal["float32", "float16", "bfloat16"]
FAMILIES: tuple[Family, ...] = ("qwen2", "llama", "bert")
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
        run_tokens: Tokens of a run, whose throughput is measured.
        square: Rows of the matrices whose product is the ceiling.
        measure_s: Seconds for which one figure is measured.
        seconds: Seconds for which callers call.
        shapes: Runs of different shapes, over which memory must not grow.
        policy_tokens: Tokens of a prompt and an answer together, in training and decoding.
        encoder_rows: Rows and tokens of a run of an encoder.
        tree: Tokens of a prompt, responses, and tokens of each.
    """

    small: Shape
    large: tuple[Shape, ...]
    run_tokens: tuple[int, ...]
    square: int
    copy_bytes: int
    measure_s: float
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
    measure_s=1.0,
    seconds=4.0,
    callers=64,
    shapes=200,
    policy_tokens=256,
    encoder_rows=(32, 512),
    tree=(1_024, 16, 128),
)
_TINY = Shape("tiny", 2, 64, 300, 512)  # one for all, because each is traced
TINY = Sizes(
    small=_TINY,
    large=(_TINY,),
    run_tokens=(64, 256),
    square=256,
    copy_bytes=2**20,
    measure_s=0.02,
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
        graphs: Graphs that `prepare` has traced; None to trace each when it is needed.
    """

    def __init__(self, device: Device, sizes: Sizes, work: Path, graphs: Path | None = None) -> None:
        self.device = device
        self.sizes = sizes
        self._work = work
        self._graphs = graphs
        self.torch_device = torch.device("cpu" if device.kind == "cpu" else "cuda")

    @property
    def is_gpu(self) -> bool:
        """Whether sessions run on a GPU."""
        return self.device.kind != "cpu"

    @cache  # noqa: B019  # a world lives as long as the process
    def torch_model(self, family: Family, shape: Shape) -> TorchRewardModel:
        """Return the model in float32 on the CPU."""
        return torch_model(family, shape)

    def version(
        self, family: Family, shape: Shape, precision: Precision, masks: bool = False
    ) -> tuple[ModelStore, Manifest]:
        """Export the model, converted to a precision; a decoder with adapter inputs, an encoder with masks if asked."""
        store = ModelStore(self._work / f"{_named(family, shape, masks)}-{precision}")
        if numbers := store.versions("reward"):
            return store, store.manifest("reward", min(numbers))
        tokenizer = tokenizer_of(shape)

        def write(target: Path) -> None:
            tokenizer.save(str(target / TOKENIZER))
            write_graph(self._graph(family, shape, masks), target / MODEL)
            convert(target / MODEL, precision)

        layout = encoder_layout(tokenizer) if family == "bert" else decoder_layout(tokenizer)
        manifest = Manifest(
            model="reward", text_format=layout.to_json(), max_length=shape.max_length, heads=1, precision=precision
        )
        return store, store.publish(manifest, write)

    def _graph(self, family: Family, shape: Shape, masks: bool) -> Graph:
        """Return the graph with the model's weights. Raises ValueError if one that is prepared does not take them."""
        model = self.torch_model(family, shape)
        if self._graphs is None:
            return traced(model, family, masks)
        path = self._graphs / f"{_named(family, shape, masks)}.onnx"
        found = load_graph(path)
        if found is None or not graph.fill(found, model, family == "bert", _adapted(family)):
            raise ValueError(f"{path} is not there or of another architecture: prepare it with this version")
        return found

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


def torch_model(family: Family, shape: Shape) -> TorchRewardModel:
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


def tokenizer_of(shape: Shape) -> Tokenizer:
    """Return a tokenizer for which the word ``w<n>`` is the token n."""
    words = {"[PAD]": PAD, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{n}": n for n in range(4, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def encoder_layout(tokenizer: Tokenizer) -> TextFormat:
    """Return the layout of an encoder's texts."""
    return TextFormat.for_encoder(tokenizer, segment_ids=True)


def decoder_layout(tokenizer: Tokenizer) -> TextFormat:
    """Return the layout of a decoder's texts."""
    return TextFormat.for_decoder(tokenizer, eos_id=1, bos_id=1, pad_id=PAD)


def traced(model: TorchRewardModel, family: Family, masks: bool) -> Graph:
    """Trace a model's graph, with attention by masks if asked; its weights are read when it is written."""
    with patch.object(graph, "take_lengths", lambda _: 0) if masks else nullcontext():
        return graph.graph_of(model, family == "bert", _adapted(family))


def prepare(sizes: Sizes, directory: Path) -> None:
    """Trace every graph that the cases need, and write it without its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [(family, sizes.small, False) for family in FAMILIES]
    wanted += [("llama", shape, False) for shape in sizes.large]
    wanted += [("bert", sizes.large[0], masks) for masks in (False, True)]
    for family, shape, masks in dict.fromkeys(wanted):
        found = traced(torch_model(family, shape), family, masks)
        notes = {p.key: p.value for p in found.proto.metadata_props}
        parameters = {name for places in json.loads(notes[graph.PARAMETERS]).values() for name, _ in places}
        for initialiser in found.proto.graph.initializer:
            if initialiser.name in found.weights.keys() - parameters:
                initialiser.CopyFrom(numpy_helper.from_array(found.values(initialiser.name), initialiser.name))
        onnx.save_model(found.proto, str(directory / f"{_named(family, shape, masks)}.onnx"))


def _named(family: Family, shape: Shape, masks: bool) -> str:
    return f"{family}-{shape.name}{'-masks' if masks else ''}".replace(" ", "-")


def _adapted(family: Family) -> tuple[str, ...]:
    return () if family == "bert" else _ADAPTED


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


def session_of(model: RewardModel) -> Any:
    """Return the ONNX Runtime session of a version for a run that has the first place to itself."""
    runner = model._runner
    assert isinstance(runner, GraphRunner)
    return runner._sessions[0].alone


def adapter_of(model: RewardModel) -> dict[str, npt.NDArray[np.float32]]:
    """Return random values for each adapter input of a graph."""
    draw = np.random.default_rng(0)
    return {
        each.name: draw.normal(
            size=[size if isinstance(size, int) and size else _RANK for size in each.shape], scale=0.1
        ).astype(np.float32)
        for each in session_of(model).get_overridable_initializers()
    }


def per_second(world: World, work: Callable[[], object]) -> float:
    """Return how often a second ``work`` is done, after two times that do not count."""
    for _ in range(2):
        work()
    synchronise(world)
    times = 0
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < world.sizes.measure_s or not times:
        work()
        times += 1
        synchronise(world)
    return times / took


def product_tflops(world: World, dtype: torch.dtype, *, tf32: bool = False) -> float:
    """Return the TFLOP/s of products of square matrices of random numbers."""
    size = world.sizes.square
    factor = torch.randn(size, size, device=world.torch_device).to(dtype)
    with torch_tf32(tf32):
        return 2 * size**3 * per_second(world, lambda: factor @ factor) / 1e12


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
def torch_tf32(is_allowed: bool) -> Iterator[None]:
    """Let torch round products of float32 matrices to TF32 in the block, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference; infinite if a logit is not finite."""
    found = float(np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).max())
    return found if math.isfinite(found) else math.inf


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures with four digits."""
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


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
