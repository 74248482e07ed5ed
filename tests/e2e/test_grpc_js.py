"""A client in JavaScript, made by @grpc/grpc-js from the .proto files alone, against the real service."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from support.npm_packages import install
from support.processes import ServeProcess, serving
from support.reward_graphs import expected_logit, publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_client import RewardloopClient

pytestmark = pytest.mark.long

HERE = Path(__file__).parent / "grpc_js"
REPOSITORY = Path(__file__).parents[2]
PROTOS = REPOSITORY / "protos"
EXAMPLE = Path("client/examples/javascript")
STREAMED = 50


@pytest.fixture(scope="module")
def client_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, beside its packages."""
    return install(HERE, tmp_path_factory.mktemp("npm")) / "client.js"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("grpc-js")
    publish_sum_version(ModelStore(directory / "models"))
    with serving(directory / "models", redis_url, directory / "serve.log") as serve:
        with RewardloopClient(serve.address) as client:
            client.promote("reward", "1")
        yield serve


@pytest.fixture(scope="module")
def seen(client_js: Path, server: ServeProcess) -> dict[str, Any]:
    google = find_spec("google.rpc")
    assert google is not None
    assert google.submodule_search_locations is not None
    site_packages = Path(next(iter(google.submodule_search_locations))).parents[1]
    command = ["node", str(client_js), server.address, str(PROTOS), str(client_js.parent), str(site_packages)]
    request = {"prompt": "alpha", "responses": ["beta", "gamma delta"], "stream": STREAMED}
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _logits(result: dict[str, Any]) -> list[float]:
    return [score["logit"] for score in result["scores"]]


EXPECTED = [pytest.approx(expected_logit("alpha", response)) for response in ("beta", "gamma delta")]


def test_health_and_scores_are_read(seen: dict[str, Any]) -> None:
    assert seen["health"]["status"] == "SERVING"
    assert _logits(seen["score"]) == EXPECTED
    assert seen["score"]["model_version"]["version"] == "1"
    assert int(seen["score"]["timings"]["run_us"]) > 0


def test_a_bad_group_of_a_batch_fails_alone(seen: dict[str, Any]) -> None:
    good, bad = seen["batch"]["items"]
    assert _logits(good["result"]) == EXPECTED
    assert bad["outcome"] == "error"
    info = seen["batch_error"]["ErrorInfo"]
    assert (info["reason"], info["domain"]) == ("INVALID_REQUEST", "rewardloop")
    assert seen["batch_error"]["BadRequest"]["field_violations"]


def test_every_request_of_a_stream_is_answered_under_its_id(seen: dict[str, Any]) -> None:
    assert {reply["request_id"] for reply in seen["stream"]} == {f"js-{i}" for i in range(STREAMED)}
    assert len(seen["stream"]) == STREAMED
    assert all(_logits(reply["result"]) == EXPECTED for reply in seen["stream"])


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [("error", "INVALID_ARGUMENT", "INVALID_REQUEST"), ("unknown_version", "NOT_FOUND", "UNKNOWN_VERSION")],
)
def test_errors_carry_their_code_and_reason(seen: dict[str, Any], call: str, code: str, reason: str) -> None:
    assert seen[call]["code"] == code
    assert (seen[call]["ErrorInfo"]["reason"], seen[call]["ErrorInfo"]["domain"]) == (reason, "rewardloop")


def test_the_example_runs_as_its_page_says(server: ServeProcess, redis_url: str, tmp_path: Path) -> None:
    """In a copy of the parts of the repository that it reads."""
    (tmp_path / EXAMPLE.parent).mkdir(parents=True)
    example = install(REPOSITORY / EXAMPLE, tmp_path / EXAMPLE.parent)
    shutil.copy(REPOSITORY / "client/service_config.json", tmp_path / "client")
    shutil.copytree(PROTOS / "rewardloop/v1", tmp_path / "protos/rewardloop/v1", ignore=shutil.ignore_patterns("*.py*"))
    command = ["node", "score.js", server.address]
    done = subprocess.run(command, cwd=example, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    good, bad, last = done.stdout.splitlines()
    prompt = "How do I return a kettle?"
    lines = [line.partition(" ") for line in (good, bad)]
    with RewardloopClient(server.address) as client:
        expected = client.score(prompt, [response for _, _, response in lines]).values
    assert [float(score) for score, _, _ in lines] == pytest.approx(expected, abs=1e-3)
    assert last.startswith("version 1; recorded as ")
    with redis.Redis.from_url(redis_url) as connection:
        (entry,) = connection.xrange(keys.FEEDBACK_STREAM, last.rpartition(" ")[2], count=1)
    event = feedback_pb2.FeedbackEvent.FromString(entry[1][b"event"])
    assert (event.prompt.text, event.annotator_id, event.source) == (prompt, "example", feedback_pb2.SOURCE_HUMAN)
    assert {event.choice.chosen, event.choice.rejected} == {0, 1}

    nobody = subprocess.run(["node", "score.js", "127.0.0.1:1"], cwd=example, capture_output=True, text=True)
    assert (nobody.returncode, "UNAVAILABLE" in nobody.stderr) == (1, True)
