"""Labelling with a real server: a file becomes tasks, the live model orders them, and answers reach the ledger."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from support.processes import ServeProcess, serving
from support.reward_graphs import expected_logit, publish_sum_version
from typer.testing import CliRunner

from rewardloop.formats.store import ModelStore
from rewardloop_cli.main import app
from rewardloop_client import RewardloopClient, Verdict
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics

PAIRS = [("alpha", "gamma"), ("delta", "delta epsilon"), ("beta", "beta theta theta theta"), ("alpha", "beta")]
FACTOR = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("labelling")
    publish_sum_version(ModelStore(directory / "models"), factor=FACTOR)
    flags = ["--label-uniform-share", "0"]
    with serving(directory / "models", redis_url, directory / "serve.log", *flags) as process:
        yield process


def label(server: ServeProcess, *args: str) -> str:
    result = CliRunner().invoke(app, ["label", *args, "--project", "words", "--server", server.address])
    assert result.exit_code == 0, result.output
    return result.stdout


def archive(redis_url: str, folder: Path) -> Ledger:
    """What the trainer has archived once the stream is read."""
    ledger, stop = Ledger(folder), threading.Event()
    with redis.Redis.from_url(redis_url) as client:
        consumer = Consumer(client, ledger, TrainerMetrics(), ConsumerSettings(flush_age_s=0.05, block_ms=20))
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        deadline = time.monotonic() + 60
        while not consumer.drained() and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join()
    return ledger


def test_a_file_is_labelled_by_information_and_the_ledger_has_what_was_not_undone(
    server: ServeProcess, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "alpha", "responses": pair} for pair in PAIRS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("page.md").write_text("# Prefer short words\n")
    version = json.loads(label(server, "guidelines", "set", "page.md", "--json"))["version"]
    assert json.loads(label(server, "import", "rows.jsonl", "--json"))["tasks"] == 4
    with RewardloopClient(server.address, timeout_s=30) as client:
        assert client.health("rewardloop.v1.LabellingService")
        deadline = time.monotonic() + 60
        while client.labelling.progress("words")[0].unscored and time.monotonic() < deadline:
            time.sleep(0.1)
        seen = []
        while (task := client.labelling.next_task("words", labeller="anna").task) is not None:
            seen.append(tuple(sorted(task.candidates)))
            first = task.candidates.index(min(task.candidates))
            client.labelling.answer(
                "words",
                task.lease_id,
                Verdict.choice(first, 1 - first),
                labeller="anna",
                seconds=1.0,
                guideline_version=task.guideline_version,
            )
        gaps = [abs(expected_logit("alpha", a, FACTOR) - expected_logit("alpha", b, FACTOR)) for a, b in seen]
        assert gaps == sorted(gaps)  # the closest pair first
        assert len(seen) == 4
        client.labelling.undo("words", labeller="anna")
    ledger = archive(redis_url, tmp_path / "ledger")
    events = [row.event for row in ledger.scan()]
    assert len(events) == 3
    for event in events:
        assert (event.annotator_id, event.guideline_version, event.tags["source"]) == ("anna", version, "console")
        assert event.responses[event.choice.chosen] == min(event.responses)
        assert (event.task.project, event.task.probability, event.task.seconds) == ("words", 1.0, 1.0)
        assert 0 < event.task.information < 0.5
    exported = [json.loads(line) for line in label(server, "export", "--format", "trl").splitlines()]
    assert [row["chosen"] < row["rejected"] for row in exported] == [True] * 3
