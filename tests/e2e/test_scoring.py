"""The scoring service as its callers see it: a real process, real gRPC, a real ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from support.processes import ServeProcess, serving
from support.reward_graphs import expected_logit, publish_sum_version

from rewardloop.formats.store import Calibration, ModelStore
from rewardloop_client import InvalidRequest, RewardloopClient, RewardloopError, UnknownVersion


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("scoring")
    publish_sum_version(ModelStore(directory / "models"), calibration=Calibration(0.5, -1.0))
    with serving(directory / "models", redis_url, directory / "serve.log") as process:
        yield process


@pytest.fixture
def client(server: ServeProcess) -> Iterator[RewardloopClient]:
    with RewardloopClient(server.address) as client:
        yield client


def test_group_is_scored_calibrated_and_says_its_version(client: RewardloopClient) -> None:
    result = client.score("alpha beta", ["gamma", "delta epsilon", "theta theta theta"])
    for score, text in zip(result.scores, ["gamma", "delta epsilon", "theta theta theta"], strict=True):
        logit = expected_logit("alpha beta", text)
        assert score.logit == pytest.approx(logit)
        assert score.score == pytest.approx(0.5 * logit - 1.0)
        assert score.uncertainty == pytest.approx(0.5 * logit / 3)
        assert not score.truncated
    assert result.model_version.version == "1"
    assert len(result.model_version.digest) == 64


def test_bad_item_of_a_batch_fails_alone(client: RewardloopClient) -> None:
    good = {"prompt": "alpha", "responses": ["beta"]}
    from rewardloop_client import ScoreGroup

    groups = [ScoreGroup("alpha", ["beta"]), ScoreGroup("alpha", [""]), ScoreGroup("alpha", ["gamma"])]
    first, bad, last = client.score_batch(groups)
    assert not isinstance(first, RewardloopError)
    assert not isinstance(last, RewardloopError)
    assert isinstance(bad, InvalidRequest)
    assert first.scores[0].logit == pytest.approx(expected_logit(good["prompt"], "beta"))
    assert last.scores[0].logit == pytest.approx(expected_logit("alpha", "gamma"))


def test_stream_answers_every_request_including_bad_ones(client: RewardloopClient) -> None:
    from rewardloop_client import ScoreGroup

    words = ["alpha", "beta", "gamma", "delta"] * 50
    groups = [ScoreGroup("alpha", [w]) if i % 20 else ScoreGroup("alpha", []) for i, w in enumerate(words)]
    outcomes = list(client.score_stream(groups, timeout_s=30))
    assert len(outcomes) == len(words)
    for i, (word, outcome) in enumerate(zip(words, outcomes, strict=True)):
        if i % 20:
            assert not isinstance(outcome, RewardloopError)
            assert outcome.scores[0].logit == pytest.approx(expected_logit("alpha", word))
        else:
            assert isinstance(outcome, InvalidRequest)


@pytest.mark.parametrize(
    ("prompt", "responses"),
    [
        ("", ["beta"]),
        ("alpha", []),
        ("alpha", [""]),
        ("alpha", ["beta"] * 10_000),
        ("x" * 1_000_000, ["beta"]),
        ("alpha", ["y" * 1_000_000]),
        ([{"role": "wizard", "content": "alpha"}], ["beta"]),
    ],
)
def test_bad_request_names_its_fields_and_the_service_goes_on(client: RewardloopClient, prompt, responses) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        client.score(prompt, responses)
    assert refusal.value.violations
    assert client.score("alpha", ["beta"]).scores[0].logit == pytest.approx(expected_logit("alpha", "beta"))


def test_bytes_that_are_not_utf8_are_an_invalid_argument(server: ServeProcess) -> None:
    # ScoreRequest{prompt: {text: "\xff"}, responses: ["a"]}
    raw = b"\x0a\x03\x0a\x01\xff\x12\x01a"
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/rewardloop.v1.RewardService/Score")
        with pytest.raises(grpc.RpcError) as refusal:
            call(raw, timeout=30)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_overlong_pair_is_shortened_or_refused(client: RewardloopClient) -> None:
    long = "alpha " * 200
    score = client.score("beta", [long]).scores[0]
    assert score.truncated
    assert score.token_count == 64
    with pytest.raises(InvalidRequest) as refusal:
        client.score("beta", [long], truncation="refused")
    assert "64 tokens" in str(refusal.value)


def test_version_that_is_not_served_is_not_found(client: RewardloopClient) -> None:
    assert client.score("alpha", ["beta"], pin_version="1", min_version=1).model_version.version == "1"
    with pytest.raises(UnknownVersion):
        client.score("alpha", ["beta"], pin_version="7")
    with pytest.raises(UnknownVersion):
        client.score("alpha", ["beta"], min_version=2)


def test_reflection_lists_the_services(server: ServeProcess) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(server.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    own = {f"rewardloop.v1.{name}Service" for name in ("Reward", "Feedback", "Policy", "Model")}
    assert own | {"grpc.health.v1.Health"} <= services


def test_metrics_page_parses_and_counts_requests(server: ServeProcess, client: RewardloopClient) -> None:
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    client.score("alpha", ["beta"])
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30).read().decode()
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    assert sum(s.value for s in samples if s.name == "rewardloop_requests_total") >= 1
    stages = {
        s.labels["stage"]
        for family in text_string_to_metric_families(page)
        for s in family.samples
        if s.name == "rewardloop_stage_seconds_count" and s.value > 0
    }
    assert {"queue", "tokenize", "run", "total"} <= stages
    assert "rewardloop_feedback_to_live_seconds_count" in {s.name for s in samples}
