"""What every test shares."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

# The taste first: it refuses to be imported after torch, which other tests of this process load.
from rewardloop_demo import taste  # noqa: F401
from rewardloop_local.redis_server import EmbeddedRedis

# Before torch, onnxruntime or tokenizers are imported: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Processes inherit an ignored SIGHUP, which nohup and some runners set. Tests need theirs to end with a terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# By default rich draws each traceback with its local variables, which takes seconds for the arrays of an engine's run.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

settings.register_profile("rewardloop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rewardloop")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One redis-server for all tests; none may stop it."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), fsync="everysec")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_url(redis_server: EmbeddedRedis) -> str:
    """Where the shared redis-server is; it is emptied around each test that uses it."""
    return redis_server.url


@pytest.fixture(autouse=True)
def _empty_redis(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empties the shared redis-server before each test that uses it, and after: a server that a module shares starts
    before its first test's own fixtures do, and must not find what an earlier module left."""
    if "redis_url" not in request.fixturenames:
        yield
        return
    import redis

    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
        client.flushall()
        yield
        client.flushall()


@pytest.fixture(autouse=True)
def _learning_threads(request: pytest.FixtureRequest) -> None:
    """A test that trains uses OMP_NUM_THREADS threads, whatever an earlier test of this process chose."""
    if request.node.get_closest_marker("learning"):
        import torch
        from support.learning_runs import THREADS

        torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _no_logging_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command called in this process leaves its logging alone: loggers keep the stream they first wrote to, which a
    later test has closed."""
    monkeypatch.setattr("rewardloop.process.log.configure_logging", lambda *_: None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the processes of a run with xdist shared."""
    if not hasattr(config, "workerinput") and (run := getattr(config, "_rewardloop_run", None)):
        shutil.rmtree(Path(tempfile.gettempdir()) / f"rewardloop-exports-{run}", ignore_errors=True)


def pytest_configure_node(node: object) -> None:
    """Note the name of the run, which xdist gives its processes."""
    node.config._rewardloop_run = node.workerinput["testrunuid"]  # type: ignore[attr-defined]
