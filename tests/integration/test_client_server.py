"""The client and the command line against a real serving process and a real redis-server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version
from typer.testing import CliRunner

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_cli.main import app
from rewardloop_client import (
    AsyncRewardloopClient,
    Feedback,
    InvalidRequest,
    PolicyUnavailable,
    RecordResult,
    RewardloopClient,
    UnknownGeneration,
    UnknownVersion,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("client")
    store = ModelStore(directory / "models")
    publish_sum_version(store)
    publish_sum_version(store)
    with serving(directory / "models", redis_url, directory / "serve.log") as process:
        yield process


@pytest.fixture
def client(server: ServeProcess) -> Iterator[RewardloopClient]:
    with RewardloopClient(server.address) as made:
        yield made


@pytest.fixture
def empty_stream(redis_url: str) -> redis.Redis:
    connection = redis.Redis.from_url(redis_url)
    connection.delete(keys.FEEDBACK_STREAM)
    return connection


def _recorded(connection: redis.Redis) -> list[feedback_pb2.FeedbackEvent]:
    entries = connection.xrange(keys.FEEDBACK_STREAM)
    return [feedback_pb2.FeedbackEvent.FromString(entry[b"event"]) for _, entry in entries]


def _run(*arguments: str):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)


def test_every_kind_of_signal_is_recorded_as_it_was_made(client: RewardloopClient, empty_stream: redis.Redis) -> None:
    context = {"prompt": "q", "responses": ["a", "b"], "annotator_id": "w", "tags": {"k": "v"}}
    events = [
        Feedback.choice(chosen=0, rejected=1, **context),
        Feedback.ranking(order=[1, 0], **context),
        Feedback.thumb(up=False, response=1, **context),
        Feedback.rating(value=3, minimum=1, maximum=5, **context),
        Feedback.edit(edited_text="better", **context),
        Feedback.tie(**context),
    ]
    assert all(isinstance(r, RecordResult) and r.stream_id for r in client.record_batch(events))
    recorded = _recorded(empty_stream)
    for event in recorded:
        assert event.HasField("arrival_time")
        event.ClearField("arrival_time")
    assert recorded == events
    assert client.record(events[0]).duplicate


def test_refusals_are_typed(client: RewardloopClient) -> None:
    bad, good = client.record_batch(
        [Feedback.tie(first=0, second=0, prompt="q", responses=["a"]), Feedback.tie(prompt="q", responses=["a", "b"])]
    )
    assert isinstance(bad, InvalidRequest)
    assert bad.violations
    assert isinstance(good, RecordResult)
    with pytest.raises(UnknownGeneration):
        client.record(Feedback.thumb(up=True, generation_id="nobody-made-this"))
    with pytest.raises(UnknownVersion):
        client.get_version("reward", "99")
    with pytest.raises(InvalidRequest):
        client.list_versions("other")
    with pytest.raises(PolicyUnavailable):
        client.generate("q")


def test_a_watch_sees_each_promotion(server: ServeProcess, client: RewardloopClient) -> None:
    client.promote("reward", "1")
    seen: list[str] = []
    started, done = threading.Event(), threading.Event()

    def watch() -> None:
        for info in client.watch_versions("reward", timeout_s=30):
            seen.append(info.version)
            started.set()
            if len(seen) == 3:
                done.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    assert started.wait(10)
    client.promote("reward", "2", reason="test")
    client.wait_until_active("reward", "2")
    client.rollback("reward", reason="test")
    assert done.wait(10)
    assert seen == ["1", "2", "1"]


async def test_the_asyncio_client_streams_and_watches(server: ServeProcess) -> None:
    async with AsyncRewardloopClient(server.address) as client:
        groups = [("alpha", ["beta"] * (n % 3 + 1)) for n in range(200)]
        outcomes = [o async for o in client.score_stream(groups)]
        assert [len(o.scores) for o in outcomes] == [n % 3 + 1 for n in range(200)]
        version = (await anext(client.watch_versions("reward"))).version
        assert version == (await client.get_version("reward")).version


def test_files_are_imported_once_and_bad_rows_are_kept(
    server: ServeProcess, empty_stream: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "annotator": "w"} for n in range(1200)]
    rows[5]["chosen"] = "x" * 300_000  # above the server's max_text_bytes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["feedback", "import", str(path), "--server", server.address, "--tag", "set=x", "--source", "llm_judge"]
    first = _run(*arguments)
    assert first.exit_code == 1
    assert "1200 rows, 1199 signals recorded, 0 duplicates, 1 row rejected" in first.output
    again = _run(*arguments)
    assert "0 signals recorded, 1199 duplicates, 1 row rejected" in again.output
    recorded = _recorded(empty_stream)
    assert len({event.event_id for event in recorded}) == len(recorded) == 1199
    assert {(e.annotator_id, e.source, e.tags["set"]) for e in recorded} == {("w", feedback_pb2.SOURCE_LLM_JUDGE, "x")}
    (kept,) = (tmp_path / "a.jsonl.rejected.jsonl").read_text().splitlines()
    assert (json.loads(kept)["line"], "INVALID_REQUEST" in json.loads(kept)["reason"]) == (6, True)


def test_status_shows_the_running_server_and_the_missing_trainer(server: ServeProcess) -> None:
    page = f"http://127.0.0.1:{server.metrics_port}/metrics"
    done = _run(
        "status", "--server", server.address, "--server-metrics", page, "--trainer-metrics", "http://127.0.0.1:1"
    )
    assert done.exit_code == 1
    lines = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    assert "NOT" not in lines["RewardService"]
    assert "NOT" not in lines["FeedbackService"]
    assert lines["reward"].split("│")[2].strip() in ("1", "2")
    assert "total p50 / p99" in lines
    assert "down" in lines["metrics"]


def test_commands_score_and_move_models(server: ServeProcess) -> None:
    scored = _run("score", "--server", server.address, "--json", "--prompt", "alpha", "beta", "beta gamma")
    assert len(json.loads(scored.output)["scores"]) == 2
    listed = _run("models", "list", "reward", "--server", server.address).output
    assert sum(line.startswith("│ reward") for line in listed.splitlines()) == 2
    both = _run("models", "list", "--server", server.address)
    assert (both.exit_code, "policy: POLICY_UNAVAILABLE" in both.output) == (2, True)
    assert sum(line.startswith("│ reward") for line in both.output.splitlines()) == 2
    assert '"format_version"' in _run("models", "show", "reward", "1", "--all", "--server", server.address).output
    moved = _run("models", "promote", "reward", "2", "--server", server.address)
    assert (moved.exit_code, "version 2 is active" in moved.output) == (0, True)
    unknown = _run("models", "promote", "reward", "9", "--server", server.address)
    assert (unknown.exit_code, "UNKNOWN_VERSION" in unknown.output) == (2, True)
    bench = _run("bench", "--server", server.address, "--seconds", "0.5", "--callers", "2")
    assert bench.exit_code == 0
