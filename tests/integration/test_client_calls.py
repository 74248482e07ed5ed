"""The client against real gRPC servers: results, typed errors, retries, deadlines, several addresses."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator

import grpc
import pytest
from support.client_servers import REASON_CODES, Services, serving, status

import rewardloop_client
from rewardloop_client import (
    AsyncRewardloopClient,
    DeadlineExceeded,
    Feedback,
    Identity,
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    QueueFull,
    RedisUnavailable,
    RewardloopClient,
    RewardloopError,
    ScoreResult,
    Unreachable,
)


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def client(services: Services) -> Iterator[RewardloopClient]:
    with serving(services) as address, RewardloopClient(address, timeout_s=5) as made:
        yield made


def _event(name: str = "", text: str = "a"):
    return Feedback.choice(prompt="p", responses=[text, "b"], chosen=0, rejected=1, event_id=name)


def test_score_returns_scores_and_the_version_that_made_them(client: RewardloopClient) -> None:
    result = client.score([{"role": "user", "content": "hi"}], ["ab", "abcd", "a"])
    assert result.values == (2, 4, 1)
    assert result.best == 1
    assert [s.logit for s in result.scores] == [4, 8, 2]
    assert result.model_version.version == "1"


def test_one_bad_group_of_a_batch_fails_alone_wherever_it_is_found(client: RewardloopClient) -> None:
    refused_by_server, unsendable = ("p", [""]), ("p", ["\ud800"])
    outcomes = client.score_batch([("p", ["ab"]), refused_by_server, unsendable, ("p", ["abc"])])
    assert [type(o) for o in outcomes] == [ScoreResult, InvalidRequest, InvalidRequest, ScoreResult]
    assert outcomes[3].values == (3,)
    assert outcomes[1].violations[0].field == "responses"
    assert outcomes[2].violations[0].field == "responses[0]"


def test_groups_and_signals_that_one_call_cannot_carry_go_in_several(
    client: RewardloopClient, services: Services
) -> None:
    groups = [("p", ["x" * (1 + i % 7)]) for i in range(2_100)]
    groups[1_500] = ("p", ["\ud800"])
    outcomes = client.score_batch(groups)
    assert isinstance(outcomes[1_500], InvalidRequest)
    assert [o.values[0] for i, o in enumerate(outcomes) if i != 1_500] == [
        1 + i % 7 for i in range(2_100) if i != 1_500
    ]
    results = client.record_batch([_event(f"many-{i}") for i in range(2_100)])
    assert [each.duplicate for each in results] == [False] * 2_100
    assert services.calls == ["ScoreBatch"] * 3 + ["RecordBatch"] * 3


def test_calls_carry_less_than_a_servers_bound_on_bytes(client: RewardloopClient) -> None:
    outcomes = client.score_batch([("p" * 500_000, ["ab"])] * 20)
    assert [o.values[0] for o in outcomes] == [2] * 20


def test_the_failure_of_a_later_call_is_the_outcome_of_what_is_left(
    client: RewardloopClient, services: Services
) -> None:
    services.failures += [lambda _: None, status("INVALID_REQUEST")]
    outcomes = client.score_batch([("p", ["ab"])] * 1_500)
    assert [isinstance(o, ScoreResult) for o in outcomes] == [True] * 1_000 + [False] * 500


def test_stream_outcomes_come_in_the_order_of_the_groups(client: RewardloopClient) -> None:
    groups = [("p", ["x" * n]) for n in range(1, 60)]
    groups[7] = ("p", ["\ud800"])
    outcomes = list(client.score_stream(iter(groups), max_in_flight=4))
    assert isinstance(outcomes.pop(7), InvalidRequest)
    assert [o.values[0] for o in outcomes] == [n for n in range(1, 60) if n != 8]


def test_stream_raises_what_its_source_raised_after_the_outcomes_of_what_was_sent(client: RewardloopClient) -> None:
    def source():
        yield ("p", ["ab"])
        raise LookupError("no more")

    stream = client.score_stream(source())
    assert next(stream).values == (2,)
    with pytest.raises(LookupError):
        next(stream)


def test_stream_can_be_left_early_while_its_source_is_endless(client: RewardloopClient) -> None:
    endless = iter(lambda: ("p", ["ab"]), None)
    stream = client.score_stream(endless, max_in_flight=2)
    assert next(stream).values == (2,)
    stream.close()
    assert client.score("p", ["abc"]).values == (3,)


@pytest.mark.parametrize("reason", REASON_CODES)
def test_each_reason_is_raised_as_its_own_type(services: Services, client: RewardloopClient, reason: str) -> None:
    services.failures = [status(reason)]
    with pytest.raises(RewardloopError) as caught:
        client.rollback("reward")
    assert caught.value.reason == reason
    assert type(caught.value).reason == reason
    assert caught.value.code.value[0] == REASON_CODES[reason]
    assert reason in str(caught.value)


def test_violations_and_the_wish_to_wait_are_read(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("INVALID_REQUEST", field="responses[2]"), status("QUEUE_FULL", retry_after_s=1.5)]
    with pytest.raises(InvalidRequest) as invalid:
        client.score("p", ["a"])
    assert invalid.value.violations[0].field == "responses[2]"
    with pytest.raises(QueueFull) as full:
        client.rollback("reward")
    assert full.value.retry_after_s == 1.5


def test_a_status_without_details_is_typed_by_its_code(services: Services, client: RewardloopClient) -> None:
    services.failures = [lambda context: context.abort(grpc.StatusCode.DATA_LOSS, "odd")]
    with pytest.raises(InternalError) as caught:
        client.score("p", ["a"])
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert caught.value.reason == ""


def test_nobody_at_the_address_is_unreachable() -> None:
    with RewardloopClient("127.0.0.1:1", max_attempts=2, timeout_s=2) as client, pytest.raises(Unreachable):
        client.score("p", ["a"])


@pytest.mark.parametrize("reason", ["QUEUE_FULL", "REDIS_UNAVAILABLE", "NO_MODEL"])
@pytest.mark.parametrize("method", ["Score", "Record", "Generate", "Promote"])
def test_safe_calls_are_repeated_until_they_succeed(
    services: Services, client: RewardloopClient, method: str, reason: str
) -> None:
    services.failures = [status(reason, retry_after_s=0.001)] * 3
    run = {
        "Score": lambda: client.score("p", ["a"]),
        "Record": lambda: client.record(_event()),
        "Generate": lambda: client.generate("p"),
        "Promote": lambda: client.promote("reward", "2"),
    }
    run[method]()
    assert services.calls == [method] * 4


def test_rollback_is_never_repeated(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("REDIS_UNAVAILABLE", retry_after_s=0.001)]
    with pytest.raises(RedisUnavailable):
        client.rollback("reward")
    assert services.calls == ["Rollback"]


def test_what_cannot_pass_is_not_repeated(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("UNKNOWN_VERSION")]
    with pytest.raises(rewardloop_client.UnknownVersion):
        client.score("p", ["a"], pin_version="9")
    assert services.calls == ["Score"]


def test_attempts_end_with_the_last_error(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("QUEUE_FULL", retry_after_s=0.001)] * 9
    with pytest.raises(QueueFull):
        client.score("p", ["a"])
    assert len(services.calls) == 4


def test_a_negative_pushback_forbids_another_try(services: Services, client: RewardloopClient) -> None:
    def refuse(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota spent")

    services.failures = [refuse]
    with pytest.raises(Overloaded):
        client.score("p", ["a"])
    assert services.calls == ["Score"]


def test_the_servers_wish_to_wait_is_kept(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("QUEUE_FULL", retry_after_s=0.3)]
    started = time.monotonic()
    client.score("p", ["a"])
    assert time.monotonic() - started >= 0.3


def test_a_wish_beyond_the_deadline_raises_at_once(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("QUEUE_FULL", retry_after_s=60)]
    with pytest.raises(QueueFull):
        client.score("p", ["a"], timeout_s=2)
    assert services.calls == ["Score"]


def test_one_deadline_covers_all_attempts(services: Services) -> None:
    def slow(context: grpc.ServicerContext) -> None:
        time.sleep(0.3)
        context.abort(grpc.StatusCode.UNAVAILABLE, "after a while")

    services.failures = [slow] * 50
    with serving(services) as address, RewardloopClient(address, max_attempts=50) as patient:
        started = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unreachable)):
            patient.score("p", ["a"], timeout_s=0.8)
        assert time.monotonic() - started < 3
    assert 1 < len(services.calls) < 4


def test_a_slow_server_is_a_deadline_exceeded(services: Services, client: RewardloopClient) -> None:
    services.failures = [lambda context: time.sleep(0.5)]
    with pytest.raises(DeadlineExceeded):
        client.score("p", ["a"], timeout_s=0.1)


def test_only_failed_events_that_may_pass_are_sent_again(services: Services, client: RewardloopClient) -> None:
    services.event_failures = {
        "passes": [status("REDIS_UNAVAILABLE", retry_after_s=0.001)],
        "bad": [status("INVALID_REQUEST", field="signal")] * 9,
        "never": [status("STORE_FULL", retry_after_s=0.001)] * 9,
    }
    outcomes = client.record_batch([_event(n) for n in ("good", "passes", "bad", "never")])
    assert [getattr(o, "reason", "") for o in outcomes] == ["", "", "INVALID_REQUEST", "STORE_FULL"]
    assert services.batch_sizes == [4, 2, 1, 1]
    assert set(services.seen) == {"good", "passes"}


def test_a_repeated_event_is_a_duplicate(client: RewardloopClient) -> None:
    event = _event()
    assert not client.record(event).duplicate
    assert client.record(event).duplicate


def test_a_message_above_the_limit_is_refused_without_repeating(client: RewardloopClient) -> None:
    with pytest.raises(MessageTooLarge):
        client.score("p", ["x" * (65 * 1024 * 1024)])


def test_calls_are_spread_over_addresses_and_a_dead_one_is_skipped() -> None:
    with serving(Services("left")) as left, serving(Services("right")) as right:
        with RewardloopClient([left, right, "127.0.0.1:1"]) as client:
            deadline = time.monotonic() + 10
            seen: set[str] = set()
            while seen != {"left", "right"} and time.monotonic() < deadline:
                seen.add(client.score("p", ["a"]).model_version.version)
        assert seen == {"left", "right"}


def test_host_names_are_rotated_and_a_dead_one_is_retried_elsewhere() -> None:
    with serving(Services("up"), host="localhost") as up, RewardloopClient([up, "localhost:1"]) as client:
        assert {client.score("p", ["a"]).model_version.version for _ in range(6)} == {"up"}


def test_a_server_that_comes_back_is_found_within_one_calls_patience() -> None:
    with serving(Services("before")) as address:
        client = RewardloopClient(address, max_attempts=30, timeout_s=10)
        assert client.score("p", ["a"]).model_version.version == "before"
    with pytest.raises(RewardloopError):
        client.score("p", ["a"], timeout_s=0.5)
    with serving(Services("after"), port=int(address.rpartition(":")[2])):
        assert client.score("p", ["a"]).model_version.version == "after"
    client.close()


def test_models_are_listed_moved_and_watched(services: Services, client: RewardloopClient) -> None:
    assert [v.version for v in client.list_versions("reward")] == ["3", "2", "1"]
    moved = client.promote("reward", "2")
    assert (moved.version.version, moved.version.state, moved.previous_version) == ("2", "active", "1")
    assert [v.version for v in client.watch_versions("reward")] == ["1", "2"]
    assert client.wait_until_active("reward", "2", timeout_s=2).version == "2"
    with pytest.raises(DeadlineExceeded):
        client.wait_until_active("reward", "3", timeout_s=0.5)
    assert client.rollback("reward").version.version == "1"


def test_roles_beside_the_active_version_are_set_and_ended(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("REDIS_UNAVAILABLE", retry_after_s=0.001)]
    canary = client.set_canary("reward", "2", share=0.05, reason="try it")
    assert canary is not None
    assert (canary.version, canary.state) == ("2", "canary")
    shadow = client.set_shadow("reward", "3", share=1.0, expected_version="1")
    assert shadow is not None
    assert (shadow.version, shadow.state) == ("3", "shadow")
    assert client.set_canary("reward", None) is client.set_shadow("reward", None) is None
    seen = [(r.model, r.version, r.share, r.reason) for r in services.roles]
    ended = ("reward", "", 0.0, "")
    assert seen == [("reward", "2", 0.05, "try it"), ("reward", "3", 1.0, ""), ended, ended]
    expected = [each.expected_version if each.HasField("expected_version") else None for each in services.roles]
    assert expected == [None, "1", None, None]
    assert services.calls == ["SetCanary", "SetCanary", "SetShadow", "SetCanary", "SetShadow"]


async def test_both_clients_learn_who_they_are(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("DRAINING", retry_after_s=0.001)]
    who = Identity("shop", frozenset({"feedback", "score"}), is_open=False)
    assert client.get_identity() == who
    with serving(services) as address:
        async with AsyncRewardloopClient(address) as other:
            assert await other.get_identity() == who


async def test_the_asyncio_client_sets_roles(services: Services) -> None:
    with serving(services) as address:
        async with AsyncRewardloopClient(address, timeout_s=5) as client:
            canary = await client.set_canary("reward", "2", share=0.5)
            assert canary is not None
            assert canary.state == "canary"
            shadow = await client.set_shadow("reward", "2", share=0.5)
            assert shadow is not None
            assert shadow.state == "shadow"
            assert await client.set_canary("reward", None) is None
            with pytest.raises(InvalidRequest):
                await client.set_shadow("reward", "2", share="half")  # type: ignore[arg-type]


def test_a_watch_is_opened_again_after_a_break(services: Services, client: RewardloopClient) -> None:
    services.failures = [status("DRAINING", retry_after_s=0.001)]
    assert next(client.watch_versions("reward")).version == "1"
    assert services.calls == ["WatchVersions"] * 2


def test_health_is_told_and_an_unknown_service_is_not_found(client: RewardloopClient) -> None:
    assert client.health() is client.health("rewardloop.v1.RewardService") is True
    with pytest.raises(rewardloop_client.NotFound):
        client.health("other")


def test_generate_returns_candidates(client: RewardloopClient) -> None:
    answer = client.generate("hi", candidates=2)
    assert [(c.text, c.finish_reason) for c in answer.candidates] == [("hello", "length")] * 2
    assert (answer.generation_id, answer.policy_version.version) == ("g1", "4")


async def test_the_asyncio_client_does_the_same(services: Services) -> None:
    with serving(services) as address:
        async with AsyncRewardloopClient(address, timeout_s=5) as client:
            services.failures = [status("QUEUE_FULL", retry_after_s=0.001)]
            assert (await client.score("p", ["ab"])).values == (2,)
            assert services.calls == ["Score", "Score"]
            services.failures = [status("REDIS_UNAVAILABLE")]
            with pytest.raises(RedisUnavailable):
                await client.rollback("reward")
            outcomes = await client.score_batch([("p", ["ab"]), ("p", [""])])
            assert [type(o) for o in outcomes] == [ScoreResult, InvalidRequest]
            services.event_failures = {"again": [status("REDIS_UNAVAILABLE", retry_after_s=0.001)]}
            assert len([r for r in await client.record_batch([_event("again"), _event("b")]) if r.stream_id]) == 2
            assert services.batch_sizes == [2, 1]
            streamed = [o.values[0] async for o in client.score_stream(("p", ["x" * n]) for n in range(1, 40))]
            assert streamed == list(range(1, 40))
            services.failures = [status("DRAINING", retry_after_s=0.001)]
            assert [v.version async for v in client.watch_versions("reward")] == ["1"]
            scores = await asyncio.gather(*(client.score("p", ["x" * n]) for n in range(1, 20)))
            assert [s.values[0] for s in scores] == list(range(1, 20))


async def test_the_asyncio_stream_raises_what_its_source_raised(services: Services) -> None:
    async def source():
        yield ("p", ["ab"])
        raise LookupError("no more")

    with serving(services) as address:
        async with AsyncRewardloopClient(address) as client:
            stream = client.score_stream(source())
            assert (await anext(stream)).values == (2,)
            with pytest.raises(LookupError):
                await anext(stream)


async def test_an_asyncio_stream_can_be_left_early_while_its_source_is_endless(services: Services) -> None:
    async def endless():
        while True:
            yield ("p", ["ab"])

    with serving(services) as address:
        async with AsyncRewardloopClient(address) as client:
            stream = client.score_stream(endless(), max_in_flight=2)
            assert (await anext(stream)).values == (2,)
            await stream.aclose()
            assert (await client.score("p", ["abc"])).values == (3,)


async def test_a_cancelled_call_ends_as_cancelled(services: Services) -> None:
    services.failures = [lambda context: time.sleep(1)]
    with serving(services) as address:
        async with AsyncRewardloopClient(address) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.score("p", ["a"])
            assert (await client.score("p", ["abc"])).values == (3,)


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {n: list(inspect.signature(f).parameters) for n, f in members if not n.startswith("_")}

    assert public(RewardloopClient) == public(AsyncRewardloopClient)


def test_exported_names_are_exactly_the_public_ones() -> None:
    public = {n for n in vars(rewardloop_client) if not n.startswith("_")} - {
        "fake",
        "integrations",
        "labelling",
        "metrics",
        "operations",
    }
    assert public == set(rewardloop_client.__all__)
