"""A fake whose loop has something to show: rounds, a refused candidate, people, dead letters, reports."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp

from rewardloop.v1 import operations_pb2 as pb
from rewardloop_client.fake import FakeRewardloop

REASON = "held-out statements are -0.0310 nats likelier under it than under the live version"
HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/beacon>"


def stamp(seconds_ago: float = 0.0) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(time.time_ns() - int(seconds_ago * 1e9))
    return moment


def busy_fake() -> FakeRewardloop:
    """Two reward and two policy versions, of which the first ones are live."""
    fake = FakeRewardloop(
        versions={"reward": ["1", "2"], "policy": ["1", "2"]},
        generate=lambda prompt, index: f"answer {index}: {prompt}",
    )
    for model in ("reward", "policy"):
        fake.promote(model, "1")
    fake.attempts.clear()
    _tell_status(fake)
    fake.loop.rounds = [refused_round(), promoted_round()]
    fake.loop.crowd = people()
    for number, reason in ((1, "no signal is set"), (2, "the event cannot be parsed")):
        fake.loop.letters.append(
            pb.DeadLetter(
                letter_id=f"170000000000{number}-0",
                time=stamp(600),
                reason=reason,
                size_bytes=40,
                event_id=f"e{number}",
                content=HOSTILE,
                readable=True,
            )
        )
    about = pb.Report(report_id="r1", kind="evaluation", title="reward: 2 <b>", lead="All passed.", time=stamp(60))
    fake.loop.reports = [pb.GetReportResponse(report=about, page=f"<!doctype html><h1>Report</h1>{HOSTILE}")]
    return fake


def refused_round() -> pb.Round:
    round_ = pb.Round(
        model="reward",
        trainer_id="t1",
        number=8,
        phase="exported",
        outcome="refused",
        start_time=stamp(900),
        end_time=stamp(600),
        new_signals=256,
        signals=4_000,
        parent_version="1",
        figures={"gate_candidate_accuracy": 0.62, "gate_gain": -0.031},
        reasons=[pb.RefusalReason(rule="likelihood", text=REASON)],
        step=40,
        steps=40,
        curves=[
            pb.Curve(name="loss", steps=[1, 20, 40], values=[0.7, 0.5, 0.45]),
            pb.Curve(name="accuracy", steps=[1], values=[0.5]),
        ],
    )
    example = round_.examples.add(prompt=HOSTILE, note="the candidate prefers the other answer")
    example.sides.add(title="people prefer", text="Hold the button for five seconds.")
    example.sides.add(title="over", text="x" * 100_000)
    return round_


def promoted_round() -> pb.Round:
    return pb.Round(
        model="policy",
        trainer_id="t1",
        number=3,
        phase="promoted",
        outcome="promoted",
        start_time=stamp(9_000),
        end_time=stamp(8_000),
        parent_version="1",
        version="2",
        figures={"gate_win_rate": 0.57},
    )


def people() -> pb.Crowd:
    crowd = pb.Crowd(report_time=stamp(600), people_count=2, alpha=0.41, muted_share=0.1)
    crowd.people.add(caller="shop", annotator_id="user-17", signals=120, votes=100, weight=1.2, pace_s=14.0)
    crowd.people[0].reliability, crowd.people[0].agreement, crowd.people[0].compared = 0.8, 0.7, 90
    spammer = crowd.people.add(annotator_id="<b>spammer</b>", signals=300, weight=0.0, pace_s=0.4)
    spammer.flags.add(detector="pace", text="answers faster than anybody reads in 98% of 300 signals")
    return crowd


def _tell_status(fake: FakeRewardloop) -> None:
    status = fake.loop.status
    status.trainer.trainer_id, status.trainer.ledger_rows = "t1", 4_000
    status.queue.stream_length = 12
    status.traffic.start_time.CopyFrom(stamp(86_400))
    status.traffic.requests.add(method="RewardService/Score", code="OK", count=12_345)
    status.traffic.requests.add(method="RewardService/Score", code="UNAVAILABLE", count=2)
    status.alerts.add(name="RewardloopDeadLetters", severity="ticket", text="Signals could not be read.")
    fake.loop.training["reward"] = pb.TrainingStatus(model="reward", phase="idle", new_signals=219, least_signals=256)
    fake.loop.waiting_for = {
        "reward": "reward: 37 more comparisons.",
        "policy": "policy: its turn.",
    }
