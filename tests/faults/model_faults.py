"""Faults of model versions and of disks."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults.table import AWAY, fault
from faults.world import World
from support.reward_graphs import publish_sum_version, write_sum_graph
from support.small_disk import fill, small_disk

from rewardloop.formats.store import MANIFEST, ModelStore
from rewardloop_client import CorruptVersion, NotFound, NotLoadable, RewardloopError


def _refused(world: World, kind: type[RewardloopError], harm: Callable[[Path], None]) -> None:
    """Publish a version, harm its files, promote it: refused by name, and nothing else changes."""
    version = publish_sum_version(world.store, factor=9.0).version
    harm(world.directory / "models" / "reward" / version)
    with world.admin() as admin, pytest.raises(kind):
        admin.promote("reward", version)
    assert {world.active_at(server) for server in world.servers} == {"1"}


def _refused_graph(world: World, write: Callable[[Path], None]) -> None:
    """The same for a version whose files are as published, and useless."""
    good = world.store.manifest("reward", 1)
    tokenizer = world.directory / "models" / "reward" / "1" / "tokenizer.json"

    def fill_in(directory: Path) -> None:
        shutil.copy(tokenizer, directory / "tokenizer.json")
        write(directory / "model.onnx")

    version = world.store.publish(replace(good, parent="1"), fill_in).version
    with world.admin() as admin, pytest.raises(NotLoadable):
        admin.promote("reward", version)
    assert {world.active_at(server) for server in world.servers} == {"1"}


@fault("a version's graph is cut short")
def truncated(world: World) -> None:
    def harm(directory: Path) -> None:
        graph = directory / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-100])

    _refused(world, CorruptVersion, harm)


@fault("one bit of a version's graph is another (wrong sha256)")
def altered(world: World) -> None:
    def harm(directory: Path) -> None:
        data = bytearray((directory / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (directory / "model.onnx").write_bytes(data)

    _refused(world, CorruptVersion, harm)


@fault("a version's file is missing")
def missing(world: World) -> None:
    _refused(world, CorruptVersion, lambda directory: (directory / "tokenizer.json").unlink())


@fault("a version's manifest is no JSON")
def manifest_is_noise(world: World) -> None:
    _refused(world, CorruptVersion, lambda directory: (directory / MANIFEST).write_bytes(b"\x00\xff{"))


@fault("a version's manifest is another version's, or its calibration was edited")
def manifest_is_wrong(world: World) -> None:
    def edit(directory: Path) -> None:
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest["max_length"] = 7
        (directory / MANIFEST).write_text(json.dumps(manifest))

    other = world.directory / "models" / "reward" / "2" / MANIFEST
    _refused(world, CorruptVersion, lambda directory: shutil.copy(other, directory / MANIFEST) and None)
    _refused(world, CorruptVersion, edit)


@fault("a version without a manifest: its writer died")
def half_written(world: World) -> None:
    _refused(world, NotFound, lambda directory: (directory / MANIFEST).unlink())


@fault("a version's graph is noise, with the right sha256")
def noise(world: World) -> None:
    _refused_graph(world, lambda graph: graph.write_bytes(b"this is no graph") and None)


@fault("a version's weights are NaN, with the right sha256")
def not_a_number(world: World) -> None:
    _refused_graph(world, lambda graph: write_sum_graph(graph, factor=math.nan))


@fault("the disk of ledger and spool is full")
def full_disk(world: World) -> None:
    if not world.has_small_disk:
        pytest.skip("mounting a small disk needs root")
    ballast = fill(world.disk)
    time.sleep(1.0)
    ballast.unlink()


@fault("the disk of the spool is full while Redis is away", feedback=AWAY | {"STORE_FULL"})
def full_spool_disk(world: World) -> None:
    if not world.has_small_disk:
        pytest.skip("mounting a small disk needs root")
    ballast = fill(world.disk)
    world.proxy.refuse()
    time.sleep(1.0)
    ballast.unlink()
    time.sleep(0.5)
    world.proxy.heal()


@fault("the store's disk is full when a version is published")
def full_store(world: World) -> None:
    with small_disk(world.directory / "small-store", kib=8192) as disk:
        store = ModelStore(disk)
        publish_sum_version(store)
        ballast = fill(disk)
        with pytest.raises(OSError, match="No space"):
            publish_sum_version(store)
        assert store.versions("reward") == [1]
        assert [path.name for path in (disk / "reward").iterdir()] == ["1"]
        ballast.unlink()
        assert publish_sum_version(store).version == "2"
    (world.directory / "small-store").rmdir()
