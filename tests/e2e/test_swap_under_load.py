"""Swaps, promotions and rollbacks while callers keep calling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.delta_graphs import publish_sum_delta, publish_sum_trunk
from support.processes import serving
from support.reward_graphs import expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import CorruptVersion, NothingToRollBack, RewardloopClient, RewardloopError, UnknownVersion

CALLERS = 8


def publish_deltas(store: ModelStore, versions: int) -> None:
    trunk = publish_sum_trunk(store)
    for version in range(2, versions + 1):
        publish_sum_delta(store, trunk, factor=float(version))


def publish_graphs(store: ModelStore, versions: int) -> None:
    for version in range(1, versions + 1):
        publish_sum_version(store, factor=float(version))


@pytest.mark.parametrize(
    ("publish", "versions", "swaps", "pin", "adapters"),
    [
        (publish_deltas, 20, 100, "1", "active"),
        (publish_deltas, 20, 100, "1", "bound"),
        (publish_graphs, 11, 10, None, "auto"),
    ],
    ids=["deltas", "bound deltas", "graphs"],
)
def test_no_request_fails_and_every_reply_names_a_version_live_during_it(
    tmp_path: Path,
    empty_redis_url: str,
    publish: Callable[[ModelStore, int], None],
    versions: int,
    swaps: int,
    pin: str | None,
    adapters: str,
) -> None:
    """Where versions share a graph, half of the callers pin the first one, which stays warm."""
    publish(ModelStore(tmp_path / "models"), versions)
    failures: list[RewardloopError] = []
    replies: list[tuple[float, float, str, float]] = []
    pinned: list[tuple[str, float]] = []
    live: list[tuple[str, float]] = []  # each version, and from when on it may answer
    stop = threading.Event()

    with (
        serving(
            tmp_path / "models",
            empty_redis_url,
            tmp_path / "serve.log",
            *("--resident-versions", str(versions), "--adapters", adapters),
        ) as server,
        RewardloopClient(server.address, timeout_s=60) as admin,
    ):
        admin.promote("reward", "1")
        live.append(("1", 0.0))

        def call(pin: str | None) -> None:
            with RewardloopClient(server.address, max_attempts=1) as client:
                while not stop.is_set():
                    sent = time.monotonic()
                    try:
                        result = client.score("alpha", ["beta", "gamma"], pin_version=pin)
                    except RewardloopError as error:
                        failures.append(error)
                        continue
                    version, logit = result.model_version.version, result.scores[0].logit
                    if pin is None:
                        replies.append((sent, time.monotonic(), version, logit))
                    else:
                        pinned.append((version, logit))

        callers = [threading.Thread(target=call, args=(pin if i % 2 else None,)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        ends: list[float] = []  # when each version of `live` had surely been replaced
        for swap in range(1, swaps + 1):
            version = str(swap % versions + 1)
            before = len(replies)
            live.append((version, time.monotonic()))
            admin.promote("reward", version, reason="test")
            ends.append(time.monotonic())
            while len(replies) < before + 20 or all(reply[2] != version for reply in replies[before:]):
                time.sleep(0.002)
        stop.set()
        for caller in callers:
            caller.join()
        ends.append(float("inf"))

    assert failures == []
    assert {version for _, _, version, _ in replies} == {version for version, _ in live}
    spans = [(version, start, end) for (version, start), end in zip(live, ends, strict=True)]
    for sent, received, version, logit in replies:
        assert logit == pytest.approx(expected_logit("alpha", "beta", float(version))), "scored by another version"
        assert any(v == version and received >= start and sent <= end for v, start, end in spans)
    if pin is not None:
        assert len(pinned) > swaps
        assert {version for version, _ in pinned} == {pin}
        assert {logit for _, logit in pinned} == {expected_logit("alpha", "beta", float(pin))}


def test_rollback_returns_to_the_version_before(tmp_path: Path, empty_redis_url: str) -> None:
    store = ModelStore(tmp_path / "models")
    for factor in (1.0, 2.0, 3.0):
        publish_sum_version(store, factor=factor)
    with (
        serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server,
        RewardloopClient(server.address) as client,
    ):
        client.promote("reward", "1")
        client.promote("reward", "3")
        client.rollback("reward", reason="worse")
        assert client.score("alpha", ["beta"]).model_version.version == "1"


def test_altered_or_unknown_version_never_becomes_active(tmp_path: Path, empty_redis_url: str) -> None:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    with (
        serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server,
        RewardloopClient(server.address) as client,
    ):
        publish_sum_version(store, factor=2.0)
        graph = tmp_path / "models" / "reward" / "2" / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-7] + b"garbage")
        with pytest.raises(CorruptVersion):
            client.promote("reward", "2")
        with pytest.raises(UnknownVersion):
            client.promote("reward", "99")
        with pytest.raises(NothingToRollBack):
            client.rollback("reward")
        assert client.score("alpha", ["beta"]).model_version.version == "1"


def test_broken_graph_with_a_right_checksum_is_refused(tmp_path: Path, empty_redis_url: str) -> None:
    from dataclasses import replace

    from rewardloop_client import NotLoadable

    store = ModelStore(tmp_path / "models")
    good = publish_sum_version(store)

    def write(directory: Path) -> None:
        (directory / "model.onnx").write_bytes(b"this is no graph")
        (directory / "tokenizer.json").write_text("{}")

    with (
        serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server,
        RewardloopClient(server.address) as client,
    ):
        store.publish(replace(good, parent="1"), write)
        with pytest.raises(NotLoadable):
            client.promote("reward", "2")
        assert client.score("alpha", ["beta"]).model_version.version == "1"


def test_sigterm_finishes_what_runs_and_exits_with_0(tmp_path: Path, empty_redis_url: str) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"), cost=200)
    with serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server:
        outcomes: list[str] = []

        def call() -> None:
            with RewardloopClient(server.address, max_attempts=1, timeout_s=60) as client:
                try:
                    client.score("alpha", ["beta gamma"] * 200)
                    outcomes.append("ok")
                except RewardloopError as error:
                    outcomes.append(error.reason or repr(error))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.3)
        assert server.terminate() == 0
        for caller in callers:
            caller.join()
        assert len(outcomes) == 4
        assert set(outcomes) <= {"ok", "DRAINING", "UNREACHABLE"}
