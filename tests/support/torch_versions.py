"""Versions with a torch model beside their graph, loaded by both engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from rewardloop.formats.store import Manifest, ModelStore, Trunk
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Floats, RewardModel
from rewardloop_server.scoring.plan import Run
from rewardloop_server.torch_engine.opening import OpenTorch
from rewardloop_trainer.export.adapter import export_delta
from rewardloop_trainer.reward.model import RewardModel as TorchModel
from support.reward_bases import Export

DEVICE = Device("cpu", 1, spin=False)


def publish(store: ModelStore, directory: Path, encoder: Encoder, heads: int, precision: str = "float32") -> Manifest:
    """Publish the files of a directory that an export wrote."""
    manifest = Manifest(
        model="reward",
        text_format=encoder.format.to_json(),
        max_length=encoder.max_length,
        heads=heads,
        precision=precision,
    )
    return store.publish(manifest, lambda target: shutil.copytree(directory, target, dirs_exist_ok=True) and None)


def publish_export(store: ModelStore, export: Export) -> Manifest:
    """Publish an export of `support.reward_bases`."""
    return publish(store, export.directory, export.encoder, export.model.heads.out_features)


def publish_torch_delta(store: ModelStore, trunk: Manifest, encoder: Encoder, delta: TorchModel) -> Manifest:
    """Publish a model with adapters as a delta over the trunk."""
    manifest = Manifest(
        model="reward",
        text_format=encoder.format.to_json(),
        max_length=encoder.max_length,
        heads=delta.heads.out_features,
        trunk=Trunk(trunk.version, trunk.digest),
    )
    return store.publish(manifest, lambda target: export_delta(delta, encoder.tokenizer, target))


def torch_pool(store: ModelStore, device: Device = DEVICE) -> SessionPool:
    """Return what loads versions by torch."""
    return SessionPool(store, device, ServerMetrics(), opens=OpenTorch)


def graph_pool(store: ModelStore) -> SessionPool:
    """Return what loads versions by their graphs."""
    return SessionPool(store, DEVICE, ServerMetrics())


def load(pool: SessionPool, store: ModelStore, manifest: Manifest) -> RewardModel:
    """Load a version of the store."""
    return pool.load(manifest, store.fetch("reward", manifest.version))


def grouped(vocabulary: int, *, segments: bool = False, longest: int = 60, seed: int = 0) -> list[Encoded]:
    """Three prompts with four responses each, of very different lengths; the first response of each is empty."""
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(3):
        prompt = chance.integers(4, vocabulary, int(chance.integers(1, longest // 2))).tolist()
        for size in (0, *chance.integers(1, longest // 2, 3).tolist()):
            response = chance.integers(4, vocabulary, size).tolist()
            types = [0] * len(prompt) + [1] * size if segments else None
            rows.append(Encoded([*prompt, *response], types, False, size, len(prompt)))
    return rows


def runs_of(rows: list[Encoded], *, trees: bool) -> list[Run]:
    """Return plain rows together, each alone and, of a decoder, tree rows together and each alone in its run."""
    every = range(len(rows))
    runs = [Run(tuple((i,) for i in every), max(len(rows[i].ids) for i in every), 0.0)]
    runs += [Run(((i,),), len(rows[i].ids), 0.0) for i in every]
    if trees:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i in every:
            groups.setdefault(tuple(rows[i].ids[: rows[i].prompt_tokens]), []).append(i)
        items = [tuple(group) for group in groups.values()]
        sizes = [
            rows[item[0]].prompt_tokens + sum(len(rows[i].ids) - rows[i].prompt_tokens for i in item) for item in items
        ]
        runs.append(Run(tuple(items), max(sizes), 0.0))
        runs += [Run((item,), size, 0.0) for item, size in zip(items, sizes, strict=True)]
    return runs


def by_run(model: RewardModel, rows: list[Encoded]) -> list[Floats]:
    """Return the logits of each of `runs_of`."""
    return [model.execute(model.lay_out(rows, run)) for run in runs_of(rows, trees=model.signature.is_decoder)]


def difference(one: RewardModel, other: RewardModel, rows: list[Encoded]) -> float:
    """Return the largest difference of a logit of two versions, in any of `runs_of`."""
    pairs = zip(by_run(one, rows), by_run(other, rows), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)
