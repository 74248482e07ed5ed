"""`rewardloop models prune` keeps what is in use and what that needs, and deletes the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from support.reward_graphs import publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import Manifest, ModelStore, Trunk, VersionNotFound
from rewardloop_local.prune import command
from rewardloop_local.prune.kept_versions import Pointer, reasons_to_keep
from rewardloop_trainer.evaluation.gate_anchor import GATE_ANCHOR, GateAnchor
from rewardloop_trainer.rounds.fresh_start import choose_start
from rewardloop_trainer.rounds.line import first_of_line
from rewardloop_trainer.rounds.policy_anchor import anchor_version


def _write(directory: Path, best: str | None = None) -> None:
    (directory / "tokenizer.json").write_text("{}")
    if best is not None:
        GateAnchor(best, {}).write(directory / GATE_ANCHOR)


def _line(store: ModelStore, model: str, count: int, **fields: Any) -> None:
    """Publish a line of versions, each the parent of the next."""
    for number in range(1, count + 1):
        parent = str(number - 1) if number > 1 else None
        store.publish(Manifest(model=model, parent=parent, **fields), _write)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    if request.param == "local":
        return ModelStore(tmp_path / "models")
    return ModelStore(f"memory://{tmp_path.name}/models", cache_dir=tmp_path / "cache")


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as connected:
        yield connected


def _point(client: Any, model: str, version: str, *previous: str, **beside: str) -> None:
    roles = {role: {"version": holder, "share": 0.1} for role, holder in beside.items()}
    client.hset(keys.ACTIVE, model, json.dumps({"version": version, "previous": list(previous), **roles}))


def test_what_is_in_use_and_what_that_needs_stays(store: ModelStore) -> None:
    _line(store, "reward", 20)
    pointer = Pointer("15", ("14", "11", "9", "8"), {"canary": "7", "shadow": "6"})
    kept = reasons_to_keep(store, "reward", pointer, newest=2, rollbacks=3, pins=["3"])
    assert kept == {
        "15": "active",
        "7": "canary",
        "6": "shadow",
        "14": "a rollback goes back to it",
        "11": "a rollback goes back to it",
        "9": "a rollback goes back to it",
        "3": "pinned",
        **{str(number): "newer than the active version" for number in range(16, 21)},
        "1": kept["1"],
    }
    assert kept["1"].startswith("the first of the line of version ")


def test_a_graph_an_anchor_and_the_best_version_stay_as_long_as_a_version_needs_them(store: ModelStore) -> None:
    _line(store, "reward", 6)
    trunk = store.manifest("reward", 2)
    store.publish(
        Manifest(model="reward", parent="6", trunk=Trunk("2", trunk.digest), notes={"anchor": "4"}),
        lambda directory: _write(directory, best="3"),
    )
    kept = reasons_to_keep(store, "reward", Pointer("7", (), {}), newest=1, rollbacks=0, pins=[])
    assert kept == {
        "7": "active",
        "1": "the first of the line of version 7",
        "2": "the graph of version 7",
        "4": "the anchor of version 7",
        "3": "the best so far of version 7",
    }


def test_pruned_versions_are_gone_and_their_line_is_remembered(
    store: ModelStore, client: Any, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if store.url.startswith("memory"):
        pytest.skip("a command opens its own store")
    _line(store, "reward", 12)
    _line(store, "policy", 12)
    _point(client, "reward", "12", "11", "10", "9")
    _point(client, "policy", "12", "11", "10", "9")
    flags = ["--store", store.url, "--redis-url", redis_url, "--keep", "1", "--rollbacks", "2", "--pin", "policy:5"]
    assert command.main([*flags, "--dry-run"]) == 0
    assert "reward: 8 versions would be deleted: 2, 3, 4, 5, 6, 7, 8, 9" in capsys.readouterr().out
    assert store.versions("reward") == list(range(1, 13))

    assert command.main(flags) == 0
    said = capsys.readouterr().out.splitlines()
    assert "policy 5 stays: pinned" in said
    assert store.versions("reward") == [1, 10, 11, 12]
    assert store.versions("policy") == [1, 5, 10, 11, 12]
    store.fetch("reward", 10)
    assert first_of_line(store, "reward", "12").version == "1"
    assert anchor_version(store, "12") == "1"
    assert choose_start(store, "12", 1_000, 2.0, lambda _: 0).version == "1"
    assert command.main([*flags, "--json-output"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"]["deleted"] == []
    assert store.publish(Manifest(model="reward", parent="12"), _write).version == "13"


def test_a_deleted_version_is_not_there_and_its_manifest_is(store: ModelStore) -> None:
    _line(store, "reward", 3)
    before = store.manifest("reward", 2)
    store.prune("reward", 2)
    assert store.versions("reward") == [1, 3]
    assert store.remembered("reward", 2) == before
    with pytest.raises(VersionNotFound):
        store.manifest("reward", 2)
    with pytest.raises(VersionNotFound):
        store.fetch("reward", 2)
    with pytest.raises(VersionNotFound):
        store.prune("reward", 2)
    with pytest.raises(VersionNotFound):
        store.remembered("reward", 4)


def test_what_killed_writers_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    _line(store, "reward", 1)
    for name in (".publishing-old", ".preparing-old", ".pruning-2", ".publishing-new"):
        (tmp_path / "models" / "reward" / name / "torch").mkdir(parents=True)
        if not name.endswith("new"):
            os.utime(tmp_path / "models" / "reward" / name, (0, 0))
    assert store.sweep("reward") == [".preparing-old", ".pruning-2", ".publishing-old"]
    assert sorted(path.name for path in (tmp_path / "models" / "reward").iterdir()) == [".publishing-new", "1"]


def test_nothing_is_deleted_if_it_is_not_known_what_is_in_use(
    tmp_path: Path, client: Any, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ModelStore(tmp_path / "models")
    for _ in range(8):
        publish_sum_version(store)
    flags = ["--store", store.url, "--redis-url", redis_url, "--keep", "1", "--rollbacks", "0"]
    assert command.main(flags) == 1
    assert "Redis names no active version of reward" in capsys.readouterr().err
    _point(client, "reward", "99")
    assert command.main(flags) == 1
    assert "the store has no reward version 99" in capsys.readouterr().err
    client.hset(keys.ACTIVE, "reward", "noise")
    assert command.main(flags) == 1
    _point(client, "reward", "8")
    _line(store, "policy", 2)
    assert command.main(flags) == 1
    assert "no active version of policy" in capsys.readouterr().err
    assert command.main([*flags[:2], "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    assert store.versions("reward") == list(range(1, 9))


def test_a_version_that_is_promoted_meanwhile_stays(
    tmp_path: Path, client: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "models")
    _line(store, "reward", 5)
    _point(client, "reward", "5")
    prune = ModelStore.prune

    def promote_and_prune(self: ModelStore, model: str, version: str) -> None:
        _point(client, "reward", "3", "5")
        prune(self, model, version)

    monkeypatch.setattr(ModelStore, "prune", promote_and_prune)
    flags = ["--store", store.url, "--redis-url", redis_url, "--keep", "1", "--rollbacks", "1"]
    assert command.main(flags) == 0
    assert store.versions("reward") == [1, 3, 4, 5]  # 2 went before the promotion; 4 is newer than 3


def test_a_pin_of_another_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--pin", "7"])
    assert "is not of the form MODEL:VERSION" in capsys.readouterr().err


def test_the_line_ends_at_a_parent_that_nobody_remembers(store: ModelStore) -> None:
    store.publish(replace(Manifest(model="reward"), parent="77"), _write)
    assert first_of_line(store, "reward", "1").version == "1"
