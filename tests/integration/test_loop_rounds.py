"""The loop: when rounds start, how they resume, and what becomes of those that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.signals import choice

from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.loop import Learner, Loop, LoopSettings
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway, Waiting
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile
from rewardloop_trainer.vocabulary import Outcome


class Bench:
    """A loop over a real ledger and state file, with a clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self.file = StateFile(directory)
        self.metrics = TrainerMetrics()
        self.stop = threading.Event()
        self.now = 1000.0
        self.signals = 0

    def arrive(self, count: int) -> None:
        numbers = range(self.signals, self.signals + count)
        self.ledger.append([Recorded(f"{1000 + i}-0", choice(i)) for i in numbers])
        self.signals += count

    def read_clock(self) -> float:
        self.now += 0.1  # every look at it: pauses pass without waiting
        return self.now

    def loop(self, *learners: Learner) -> Loop:
        return Loop(
            learners,
            self.ledger,
            self.file,
            self.metrics,
            self.stop,
            LoopSettings(self.directory, poll_s=0.001),
            clock=self.read_clock,
        )

    def ended(self, model: str, outcome: str) -> float:
        labels = {"model": model, "outcome": outcome}
        return self.metrics.registry.get_sample_value("rewardloop_trainer_rounds_total", labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def learner(run: Callable[[CurrentRound], Outcome], model: str = "reward", **triggers: float) -> Learner:
    return Learner(model, int(triggers.get("min_signals", 10)), triggers.get("max_interval_s", 600.0), run)


def test_round_starts_at_enough_signals_and_covers_them(bench: Bench) -> None:
    seen: list[RoundState] = []

    def run(current: CurrentRound) -> Outcome:
        seen.append(current.state)
        return "promoted"

    loop = bench.loop(learner(run))
    bench.arrive(9)
    loop.run(ends=lambda: True)
    assert seen == []
    bench.arrive(1)
    loop.run(ends=lambda: True)
    bench.arrive(25)
    loop.run(ends=lambda: True)
    assert [(r.number, r.after_stream_id, r.until_stream_id, r.signals, r.new_signals) for r in seen] == [
        (1, "", "1009-0", 10, 10),
        (2, "1009-0", "1034-0", 35, 25),
    ]
    assert bench.ended("reward", "promoted") == 2


def test_one_signal_is_enough_after_the_interval_and_none_never_is(bench: Bench) -> None:
    loop = bench.loop(learner(lambda current: "promoted"))
    bench.now += 10_000
    loop.run(ends=lambda: True)
    assert loop.rounds_ended == 0
    bench.arrive(1)
    loop.run(ends=lambda: True)
    assert loop.rounds_ended == 1
    bench.arrive(1)
    loop.run(ends=lambda: True)
    assert loop.rounds_ended == 1
    bench.now += 601
    loop.run(ends=lambda: True)
    assert loop.rounds_ended == 2


def test_interrupted_round_goes_on_in_the_next_process_with_the_same_data(bench: Bench) -> None:
    seen: list[RoundState] = []

    def interrupted(current: CurrentRound) -> Outcome:
        seen.append(current.state)
        current.reach(replace(current.state, phase="gated"))
        bench.stop.set()
        raise Interrupted

    def completed(current: CurrentRound) -> Outcome:
        seen.append(current.state)
        return "promoted"

    bench.arrive(12)
    bench.loop(learner(interrupted)).run()
    bench.stop.clear()
    bench.arrive(50)
    bench.loop(learner(completed)).run(max_rounds=1)
    assert seen[1] == replace(seen[0], phase="gated")
    assert bench.file.read().of("reward").learned_through == "1011-0"


def test_failing_round_is_tried_three_times_with_growing_pauses_then_skipped_and_kept(bench: Bench) -> None:
    tries: list[float] = []

    def failing(current: CurrentRound) -> Outcome:
        tries.append(bench.now)
        raise ZeroDivisionError("no such luck")

    bench.arrive(12)
    loop = bench.loop(learner(failing))
    loop.run(max_rounds=1)
    assert [b - a for a, b in pairwise(tries)] == pytest.approx([5, 10], abs=2)
    assert (bench.ended("reward", "failed"), bench.ended("reward", "skipped")) == (3, 1)
    assert "no such luck" in (bench.directory / "failed" / "reward-1" / "error.txt").read_text()
    state = bench.file.read().of("reward")
    assert (state.round, state.learned_through, state.rounds) == (None, "1011-0", 1)


def test_failure_of_one_model_does_not_hold_up_the_other(bench: Bench) -> None:
    def failing(current: CurrentRound) -> Outcome:
        raise ValueError("bad")

    bench.arrive(12)
    bench.loop(learner(failing), learner(lambda current: "promoted", model="policy")).run(max_rounds=1)
    assert (bench.ended("policy", "promoted"), bench.ended("reward", "failed")) == (1, 1)


def test_absent_server_postpones_the_round_and_counts_no_failure(bench: Bench) -> None:
    answers = iter([ServerAway("away"), ServerAway("away"), None])

    def run(current: CurrentRound) -> Outcome:
        if (error := next(answers)) is not None:
            raise error
        return "promoted"

    bench.arrive(12)
    loop = bench.loop(learner(run))
    loop.run(max_rounds=1)
    assert (bench.ended("reward", "promoted"), bench.ended("reward", "failed")) == (1, 0)


def test_refused_candidate_uses_up_its_signals(bench: Bench) -> None:
    bench.arrive(12)
    loop = bench.loop(learner(lambda current: "refused"))
    loop.run(ends=lambda: True)
    loop.run(ends=lambda: True)
    assert bench.ended("reward", "refused") == 1
    assert bench.file.read().of("reward").learned_through == "1011-0"


def test_a_refused_start_from_the_base_is_known_to_later_rounds_after_a_restart(bench: Bench) -> None:
    known: list[str] = []

    def run(current: CurrentRound) -> Outcome:
        known.append(current.fresh_until)
        current.reach(replace(current.state, is_fresh=len(known) == 1, phase="exported"))
        return "refused"

    for new in (12, 15, 10):
        bench.arrive(new)
        bench.loop(learner(run)).run(ends=lambda: True)
    assert known == ["", "1011-0", "1011-0"]


def test_round_that_waits_for_people_holds_nothing_up_and_is_no_failure(bench: Bench) -> None:
    looked: list[float] = []

    def wait(current: CurrentRound) -> Outcome:
        looked.append(bench.now)
        if len(looked) < 3:
            raise Waiting(seconds=5.0)
        return "promoted"

    loop = bench.loop(learner(wait, "policy"), learner(lambda current: "promoted"))
    bench.arrive(10)
    loop.run(ends=lambda: True)  # the stream is drained: who waits for people does not keep the process
    assert (len(looked), bench.ended("reward", "promoted")) == (1, 1.0)
    loop.run(max_rounds=2)
    assert bench.ended("policy", "promoted") == 1.0
    assert bench.ended("policy", "failed") == 0.0
    assert all(later - earlier >= 5.0 for earlier, later in pairwise(looked))


def test_a_loop_has_failed_once_a_round_is_skipped_or_waits_to_be_tried_again(bench: Bench) -> None:
    outcomes: list[Exception | Outcome] = ["promoted", "refused", ServerAway("away"), ValueError("bad"), "promoted"]

    def run(current: CurrentRound) -> Outcome:
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    loop = bench.loop(learner(run))
    for expected in (False, False, False, True, False):  # a success after a failed attempt mends it
        bench.arrive(12)
        bench.now += 1_000.0
        loop._run_due()
        assert loop.has_failed is expected
    outcomes += [ValueError("bad")] * 3
    bench.arrive(12)
    loop.run(max_rounds=4)
    assert loop.has_failed
    assert loop.ended == {"promoted": 2, "refused": 1, "skipped": 1}
