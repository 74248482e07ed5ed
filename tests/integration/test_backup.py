"""A backup holds every signal that was acknowledged, and a restore counts each once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from support.reward_graphs import publish_sum_version
from support.signals import choice, put

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop_local.backup import make_command, restore_command
from rewardloop_local.backup.bundle import DirectoryWriter
from rewardloop_local.backup.redis_dump import dump, load
from rewardloop_local.backup.settings import BackupSettings, RestoreSettings
from rewardloop_local.plan import DeploymentPlan
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_local.redis_server.door import open_door
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.fence import Fence, Fenced
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.trainer_state import ModelState, StateFile, TrainerState

AS_DIRECTORY_AND_TAR = pytest.mark.parametrize("name", ["backup", "backup.tar"])


@dataclass
class World:
    """What `rewardloop up` keeps in a data directory, and a consumer of it that a test runs itself."""

    data: Path
    redis_server: EmbeddedRedis
    client: Any
    stops: list[threading.Event] = field(default_factory=list)

    @property
    def plan(self) -> DeploymentPlan:
        return DeploymentPlan(self.data)

    def consume(self, count: int) -> None:
        """Archive what the stream holds, until the ledger has so many rows; what was read is acknowledged."""
        consumer = Consumer(
            self.client,
            Ledger(self.plan.ledger),
            TrainerMetrics(),
            ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=600.0),
        )
        stop = threading.Event()
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        deadline = time.monotonic() + 30.0
        while len(self.archived()) < count or not consumer.drained():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stop.set()
        thread.join(20)

    def archived(self) -> list[str]:
        return Ledger(self.plan.ledger, writable=False).event_ids()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """``start(name)``: a world on the data directory of that name, its Redis running."""
    started: list[World] = []

    def begin(name: str) -> World:
        data = tmp_path / name
        plan = DeploymentPlan(data)
        server = EmbeddedRedis(plan.redis_data, door=open_door(plan.redis_data))
        server.start()
        started.append(World(data, server, redis.Redis.from_url(server.url)))
        return started[-1]

    yield begin
    for world in started:
        world.client.close()
        world.redis_server.stop()


@pytest.fixture
def world(start: Any) -> World:
    """Two versions, 30 signals that are archived, 10 that are read and not acknowledged, 10 that are not read."""
    found: World = start("data")
    store = ModelStore(found.plan.store)
    publish_sum_version(store)
    publish_sum_version(store)
    for name in ("reward/.pruned/7/manifest.json", "reward/.evaluated/2.json", ".reports/a/about.json"):
        (found.plan.store / name).parent.mkdir(parents=True)
        (found.plan.store / name).write_text("{}")
    state = TrainerState("trainer-1", {"reward": ModelState(learned_through="1-0", rounds=1)})
    found.plan.trainer_work.mkdir()
    StateFile(found.plan.trainer_work).write(state)
    (found.plan.trainer_work / "rounds" / "reward-2").mkdir(parents=True)
    (found.plan.trainer_work / "rounds" / "reward-2" / "checkpoint").write_text("3")
    with sqlite3.connect(found.plan.trainer_work / "pools.sqlite") as pools:
        pools.execute("CREATE TABLE signal (id INTEGER)")
        pools.execute("INSERT INTO signal VALUES (7)")
    put(found.client, *(choice(i) for i in range(30)))
    found.consume(30)
    put(found.client, *(choice(i) for i in range(30, 40)))
    found.client.xreadgroup(keys.FEEDBACK_GROUP, "trainer", {keys.FEEDBACK_STREAM: ">"}, count=100)
    put(found.client, *(choice(i) for i in range(40, 50)))
    found.client.hset(keys.ACTIVE, "reward", json.dumps({"version": "2", "previous": ["1"]}))
    found.client.set(keys.TRAINER_LOCK, "token", px=60_000)
    return found


def _back_up(world: World, target: Path) -> int:
    return make_command.main([str(target), f"--data={world.data}"])


def _restore(source: Path, data: Path, *args: str) -> int:
    return restore_command.main([str(source), f"--data={data}", *args])


@AS_DIRECTORY_AND_TAR
@pytest.mark.parametrize("is_running", [True, False])
def test_after_everything_is_lost_a_restore_has_each_signal_once(
    world: World, start: Any, tmp_path: Path, name: str, is_running: bool
) -> None:
    before = {
        str(path.relative_to(world.plan.store)): path.read_bytes()
        for path in world.plan.store.rglob("*")
        if path.is_file()
    }
    if not is_running:
        world.redis_server.stop()
    assert _back_up(world, tmp_path / name) == 0
    world.redis_server.stop()
    shutil.rmtree(world.data)

    assert _restore(tmp_path / name, tmp_path / "restored") == 0
    restored: World = start("restored")
    store = restored.plan.store
    assert {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    ModelStore(restored.plan.store).fetch("reward", 2)
    assert json.loads(restored.client.hget(keys.ACTIVE, "reward"))["version"] == "2"
    assert restored.client.get(keys.TRAINER_LOCK) is None
    assert StateFile(restored.plan.trainer_work).read().of("reward").learned_through == "1-0"
    assert (restored.plan.trainer_work / "rounds" / "reward-2" / "checkpoint").read_text() == "3"
    with sqlite3.connect(restored.plan.trainer_work / "pools.sqlite") as pools:
        assert pools.execute("SELECT id FROM signal").fetchall() == [(7,)]
    put(restored.client, choice(50))
    restored.consume(51)
    assert sorted(restored.archived()) == sorted(f"e{i}" for i in range(51))


def test_what_is_archived_during_the_backup_is_counted_once(
    world: World, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an object store, which has no lock to keep a trainer from writing."""
    monkeypatch.setattr(Fence, "_locked", lambda self: threading.Lock())
    dumped = dump

    def dump_and_archive(client: redis.Redis) -> Iterator[str]:
        yield from dumped(client)
        world.consume(50)
        put(world.client, choice(50))
        world.consume(51)

    monkeypatch.setattr("rewardloop_local.backup.take.dump", dump_and_archive)
    assert _back_up(world, tmp_path / "backup") == 0
    assert _restore(tmp_path / "backup", tmp_path / "restored") == 0
    restored: World = start("restored")
    restored.consume(51)
    assert sorted(restored.archived()) == sorted(f"e{i}" for i in range(51))


def test_no_trainer_writes_while_what_changes_is_copied(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = Fence(world.plan.ledger)
    fence.advance(1)
    written: list[float] = []
    writing = threading.Thread(target=lambda: (fence.held().__enter__(), written.append(time.monotonic())))
    copied: list[float] = []

    def dump_slowly(client: redis.Redis) -> Iterator[str]:
        writing.start()
        time.sleep(0.3)
        assert not written
        yield from dump(client)
        copied.append(time.monotonic())

    monkeypatch.setattr("rewardloop_local.backup.take.dump", dump_slowly)
    assert _back_up(world, tmp_path / "backup") == 0
    writing.join(10)
    assert written[0] > copied[0]


def test_a_segment_that_is_compacted_meanwhile_is_in_the_backup_in_its_new_form(
    world: World, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.consume(50)
    unchanging = "rewardloop_local.backup.take.Backup._with_trainers_paused"
    ledger = Ledger(world.plan.ledger)
    assert len(ledger.segments) > 1
    from rewardloop_local.backup.take import Backup

    paused = Backup._with_trainers_paused

    def compact_first(backup: Backup) -> None:
        ledger.compact(segments=2)
        paused(backup)

    monkeypatch.setattr(unchanging, compact_first)
    assert _back_up(world, tmp_path / "backup.tar") == 0
    assert len(ledger.segments) == 1
    assert _restore(tmp_path / "backup.tar", tmp_path / "restored") == 0
    restored = Ledger(tmp_path / "restored" / "ledger")
    assert [segment.name for segment in restored.segments] == [segment.name for segment in ledger.segments]


@AS_DIRECTORY_AND_TAR
def test_an_altered_backup_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _back_up(world, tmp_path / name) == 0
    altered = tmp_path / name if name.endswith(".tar") else next((tmp_path / name).rglob("model.onnx"))
    data = bytearray(altered.read_bytes())
    at = data.index(b"\x08", len(data) // 3) if name.endswith(".tar") else 10
    data[at] ^= 1
    altered.write_bytes(bytes(data))
    assert _restore(tmp_path / name, tmp_path / "restored") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rewardloop restore: ")
    assert "was altered (its SHA-256 differs)" in error or "is no whole backup" in error or "cannot be read" in error
    assert not (tmp_path / "restored" / "models").exists()


def test_places_that_are_not_empty_are_refused_unless_they_are_moved_aside(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _back_up(world, tmp_path / "backup") == 0
    assert _restore(tmp_path / "backup", world.data) == 1
    assert "a rewardloop runs on" in capsys.readouterr().err
    world.client.set("rewardloop:{models}:first_served:x", "1")
    world.redis_server.stop()
    assert _restore(tmp_path / "backup", world.data) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(world.plan.store) in error
    assert "Redis (keys rewardloop:*)" in error
    assert "--replace" in error
    register = world.data / "ledger" / "erasures"
    register.mkdir()
    (register / "e1.json").write_text("asked for since the backup")
    (register / "keys.json").write_text('{"a": "00"}')
    assert _restore(tmp_path / "backup", world.data, "--replace") == 0
    (aside,) = world.data.glob("models.before-*")
    assert (aside / "reward" / "2" / "manifest.json").exists()
    assert ModelStore(world.plan.store).versions("reward") == [1, 2]
    world.redis_server.start()
    assert world.client.get("rewardloop:{models}:first_served:x") is None
    assert (register / "e1.json").read_text() == "asked for since the backup"
    assert (register / "keys.json").read_text() == '{"a": "00"}'


@AS_DIRECTORY_AND_TAR
def test_a_backup_that_fails_leaves_nothing_and_one_that_exists_is_not_replaced(
    world: World, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.client.execute_command("PFADD", "rewardloop:sketch", "a")  # a string, as Redis stores it
    world.client.execute_command("GEOADD", "rewardloop:place", "1", "1", "a")  # a sorted set
    assert _back_up(world, tmp_path / name) == 0
    assert _back_up(world, tmp_path / name) == 1
    assert f"rewardloop backup: {tmp_path / name} exists: give a new name" in capsys.readouterr().err

    def fail(client: redis.Redis) -> Iterator[str]:
        yield from ()
        raise OSError("No space left on device")

    monkeypatch.setattr("rewardloop_local.backup.take.dump", fail)
    other = tmp_path / f"other-{name}"
    assert _back_up(world, other) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "rewardloop backup: No space left on device"
    assert not other.exists()
    assert not other.with_name(f"{other.name}.partial").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format_version": 9, "files": {}}', b"not a tar"])
def test_what_is_no_whole_backup_is_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "backup.json").write_bytes(content)
    (tmp_path / "backup.tar").write_bytes(content)
    for source in (tmp_path / "backup", tmp_path / "backup.tar", tmp_path / "nowhere"):
        assert _restore(source, tmp_path / "restored") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"rewardloop restore: {source} is no whole backup: ")


@pytest.mark.parametrize("name", ["../outside", "/outside", "models/../../outside"])
def test_a_name_that_leaves_the_backup_is_refused(tmp_path: Path, name: str) -> None:
    writer = DirectoryWriter(tmp_path / "backup")
    (writer.partial / "backup.json").write_text(
        json.dumps({"format_version": 1, "created_at": "", "code_version": "", "files": {name: [0, ""]}})
    )
    writer.partial.rename(tmp_path / "backup")
    assert _restore(tmp_path / "backup", tmp_path / "restored") == 1


def test_without_a_deployment_there_is_nothing_to_back_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_command.main([str(tmp_path / "backup"), "--data", str(tmp_path / "nowhere")]) == 1
    assert "there is nothing to back up" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "backup.partial").exists()


def test_an_overtaken_trainer_stays_overtaken_after_a_restore(world: World, tmp_path: Path) -> None:
    Fence(world.plan.ledger).advance(7)
    assert _back_up(world, tmp_path / "backup") == 0
    assert _restore(tmp_path / "backup", tmp_path / "restored") == 0
    with pytest.raises(Fenced):
        Fence(tmp_path / "restored" / "ledger").advance(6)


def test_every_kind_of_key_comes_back_with_its_time_and_a_stream_with_its_last_id(fresh_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(fresh_redis.url) as connected:
        client: Any = connected
        client.set("rewardloop:string", b"\x00\xff", px=50_000)
        client.set("rewardloop:soon", "1", px=1)
        client.set("rewardloop:empty", b"")
        client.zadd("rewardloop:sorted", {"a": 1.5})
        client.hset("rewardloop:hash", mapping={b"\x01": b"a", "b": ""})
        client.sadd("rewardloop:set", "a", "b")
        client.rpush("rewardloop:list", "2", "1")
        client.set("another", "1")
        for number in range(1, 1_501):
            client.xadd("rewardloop:{feedback}:dead", {"n": number}, id=f"{number}-0")
        client.xgroup_create("rewardloop:{feedback}:dead", "mine", id="0")
        client.xreadgroup("mine", "me", {"rewardloop:{feedback}:dead": ">"}, count=1_400)
        client.xack("rewardloop:{feedback}:dead", "mine", *(f"{number}-0" for number in range(1, 1_300)))
        client.xdel("rewardloop:{feedback}:dead", "1500-0")
        time.sleep(0.01)
        lines = list(dump(connected))
        client.flushall()
        assert load(connected, lines) == 7
        assert client.get("rewardloop:empty") == b""
        assert client.zrange("rewardloop:sorted", 0, -1, withscores=True) == [(b"a", 1.5)]
        assert client.get("rewardloop:string") == b"\x00\xff"
        assert 0 < client.pttl("rewardloop:string") <= 50_000
        assert client.hgetall("rewardloop:hash") == {b"\x01": b"a", b"b": b""}
        assert client.smembers("rewardloop:set") == {b"a", b"b"}
        assert client.lrange("rewardloop:list", 0, -1) == [b"2", b"1"]
        ids = [entry_id for entry_id, _ in client.xrange("rewardloop:{feedback}:dead")]
        assert ids == [f"{number}-0".encode() for number in range(1_300, 1_500)]
        assert client.xinfo_stream("rewardloop:{feedback}:dead")["last-generated-id"] == b"1500-0"
        read = client.xreadgroup("mine", "me", {"rewardloop:{feedback}:dead": ">"}, count=1_000)
        assert len(read[0][1]) == 200


def test_what_arrives_while_a_stream_is_dumped_does_not_spoil_the_dump(fresh_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(fresh_redis.url) as connected:
        client: Any = connected
        put(connected, *(choice(i) for i in range(3)))
        lines = []
        for line in dump(connected):
            lines.append(line)
            put(connected, choice(3))
        client.flushall()
        load(connected, lines)
        assert client.xlen(keys.FEEDBACK_STREAM) == 3
        put(connected, choice(4))


@pytest.mark.parametrize("settings", [BackupSettings, RestoreSettings])
def test_the_commands_name_every_setting_in_their_help(settings: type, capsys: pytest.CaptureFixture[str]) -> None:
    command = make_command if settings is BackupSettings else restore_command
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    said = capsys.readouterr().out
    for flag in ("--backup", "--data", "--store", "--archive", "--work-dir", "--redis-url", "--spool"):
        assert flag in said
