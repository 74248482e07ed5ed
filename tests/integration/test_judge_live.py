"""`rewardloop judge` beside a deployment: the log of generations and the ledger give the pairs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from support.client_servers import Services, start, status
from support.judge_endpoint import biased, judge_endpoint

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands.judge.command import main
from rewardloop_trainer.judging.pairs.live_pairs import LivePairs


def generation(i: int, texts: tuple[str, ...] = ("right", "wrong"), age_s: float = 3_600, **more: float) -> bytes:
    made = policy_pb2.Generation(generation_id=f"g{i}", prompt=common_pb2.Prompt(text=f"question {i}"))
    for n, text in enumerate(texts):
        made.candidates.add(text=text, **({"score": more["gap"] * n, "uncertainty": 0.1} if "gap" in more else {}))
    made.create_time.FromSeconds(int(time.time() - age_s))
    return made.SerializeToString()


def signal(i: int, generation_id: str = "", source: int = feedback_pb2.SOURCE_HUMAN) -> Recorded:
    event = feedback_pb2.FeedbackEvent(
        event_id=f"e{i}",
        generation_id=generation_id,
        prompt=common_pb2.Prompt(text=f"question {i}"),
        responses=["right", "wrong"],
        choice=feedback_pb2.Choice(chosen=0, rejected=1),
        annotator_id=f"p{i % 7}",
        source=source,
    )
    event.arrival_time.FromSeconds(1_700_000_000)
    return Recorded(f"{1_000 + i}-0", event)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def test_generations_that_people_are_not_asked_about_are_picked_once(client: redis.Redis, tmp_path: Path) -> None:
    for i in range(5):
        client.set(f"{keys.GENERATION}g{i}", generation(i))
    client.set(f"{keys.GENERATION}young", generation(90, age_s=5))
    client.set(f"{keys.GENERATION}same", generation(91, ("twice", "twice")))
    client.set(f"{keys.GENERATION}alone", generation(92, ("one",)))
    client.set(f"{keys.GENERATION}scored", generation(93, gap=0.5))
    client.set(f"{keys.GENERATION}broken", b"\xff")
    ledger = Ledger(tmp_path / "ledger")
    ledger.append([signal(0, "g0"), signal(7), signal(8, source=feedback_pb2.SOURCE_LLM_JUDGE)])
    live = LivePairs(ledger, client, newest=100, min_age_s=600)
    live.refresh()
    assert {each.duel.prompt[0].content for each in live.judged_by_people.values()} == {"question 0", "question 7"}
    others = {each.generation_id: each for each in live.others.values()}
    assert set(others) == {"g1", "g2", "g3", "g4", "g93"}
    scores, spreads = others["g93"].scores, others["g93"].spreads
    assert scores is not None
    assert spreads is not None
    assert sorted(scores) == [0.0, 0.5]
    assert others["g1"].scores is None
    ledger.append([signal(12, "g2")])
    live.refresh()
    assert "g2" not in {each.generation_id for each in live.others.values()}
    assert len(live.judged_by_people) == 3


def test_oldest_pairs_are_forgotten_beyond_the_bound(client: redis.Redis, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.append([signal(i) for i in range(40)])
    live = LivePairs(ledger, client, newest=10, min_age_s=0)
    live.refresh()
    assert [each.duel.prompt[0].content for each in live.judged_by_people.values()] == [
        f"question {i}" for i in range(30, 40)
    ]


def test_worker_labels_what_is_live_by_generation_and_measures_on_the_ledger(
    client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    for i in range(100, 130):
        client.set(f"{keys.GENERATION}g{i}", generation(i))
    Ledger(tmp_path / "ledger").append([signal(i) for i in range(60)])
    services = Services()
    # The service has forgotten one of the generations: its signal then says itself what was judged.
    server, address = start(services)
    record = services._recorded

    def recorded(event: feedback_pb2.FeedbackEvent) -> feedback_pb2.RecordBatchItem:
        if event.generation_id == "g100":
            return feedback_pb2.RecordBatchItem(error=status("UNKNOWN_GENERATION"))
        return record(event)

    services._recorded = recorded  # type: ignore[method-assign]
    flags = ["--archive", str(tmp_path / "ledger"), "--redis-url", redis_url, "--server", address, "--once"]
    try:
        with judge_endpoint(biased(lambda asked, a, b: a == "right", 0.0, 0.0)) as endpoint:
            more = [
                "--endpoint",
                endpoint.url,
                "--model",
                "m",
                "--work-dir",
                str(tmp_path / "w"),
                "--least-shared",
                "40",
            ]
            assert main([*flags, *more, "--metrics-port", "0", "--log-level", "warning"]) == 0
    finally:
        server.stop(None)
    events = list(services.seen.values())
    by_generation = {event.generation_id for event in events if event.generation_id}
    assert by_generation == {f"g{i}" for i in range(101, 130)}
    assert all(not event.responses for event in events if event.generation_id)
    spelled = [event for event in events if not event.generation_id]
    assert len(spelled) == 40 + 1  # the shared ones of the ledger, and the forgotten generation
    assert all(event.responses[event.choice.chosen] == "right" for event in spelled)
    assert all(event.tags["judge_picked"] in ("shared", "unasked") for event in events)


def test_redis_that_is_away_leaves_the_ledger_s_pairs(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").append([signal(i) for i in range(10)])
    out = tmp_path / "labels.jsonl"
    flags = ["--archive", str(tmp_path / "ledger"), "--redis-url", "redis://127.0.0.1:9/0", "--out", str(out), "--once"]
    with judge_endpoint(biased(lambda asked, a, b: a == "right", 0.0, 0.0)) as endpoint:
        more = ["--endpoint", endpoint.url, "--model", "m", "--work-dir", str(tmp_path / "w")]
        assert main([*flags, *more, "--metrics-port", "0", "--log-level", "error"]) == 0
    assert len(out.read_text().splitlines()) == 10
