"""The anchor set: the same statements for a whole line of versions, and the best version that stands on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.gate_worlds import evidence, nothing, readings

from rewardloop_trainer.evaluation import gate_anchor
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, Statements
from rewardloop_trainer.evaluation.gate_anchor import GATE_ANCHOR, GateAnchor, anchor_of_candidate, meet_best


def said(count: int) -> Evidence:
    return evidence(Statements(np.ones(count), np.ones(count), np.arange(count)), nothing())


def reading(right: int, of: int) -> Readings:
    return readings(np.array([1.0] * right + [-1.0] * (of - right)))


def unread(version: str, _: Evidence) -> Readings:
    raise AssertionError(f"version {version} need not be loaded")


def test_first_version_is_the_best_and_the_next_one_meets_it(tmp_path: Path) -> None:
    anchor_of_candidate(said(40), reading(30, 40), None).write(tmp_path / GATE_ANCHOR)
    known = GateAnchor.read(tmp_path, "3")
    assert known is not None
    assert (known.best, len(known.readings)) == ("3", 40)
    # The live version is the best, so that what it says now is not asked for; its readings are those of its file.
    contest, met = meet_best(known, "3", said(40), reading(32, 40), reading(0, 40), unread)
    assert contest.other.margins.tolist() == reading(30, 40).margins.tolist()
    assert contest.gain().mean > 0
    anchor_of_candidate(said(40), reading(32, 40), (contest, met)).write(tmp_path / GATE_ANCHOR)
    assert GateAnchor.read(tmp_path, "4") == GateAnchor("4", reading(32, 40).by_key(said(40)))


def test_version_below_the_best_keeps_it_in_mind(tmp_path: Path) -> None:
    known = GateAnchor("3", reading(30, 40).by_key(said(40)))
    met = meet_best(known, "5", said(40), reading(28, 40), reading(28, 40), unread)
    assert met[0].gain().mean < 0
    anchor_of_candidate(said(40), reading(28, 40), met).write(tmp_path / GATE_ANCHOR)
    assert GateAnchor.read(tmp_path, "6") == known


def test_small_set_grows_and_the_best_version_reads_what_is_new() -> None:
    known = GateAnchor("3", reading(30, 40).by_key(said(40)))
    asked: list[tuple[str, int]] = []

    def read(version: str, new: Evidence) -> Readings:
        asked.append((version, len(new.pairs)))
        return reading(len(new.pairs), len(new.pairs))

    contest, met = meet_best(known, "5", said(60), reading(60, 60), reading(0, 60), read)
    assert asked == [("3", 20)]
    assert len(contest.evidence.pairs) == len(met.readings) == 60
    assert contest.other.margins.tolist() == [1.0] * 30 + [-1.0] * 10 + [1.0] * 20
    gone, _ = meet_best(known, "5", said(60), reading(60, 60), reading(0, 60), lambda *_: None)
    assert len(gone.evidence.pairs) == 40


def test_full_set_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_anchor, "ANCHOR_STATEMENTS", 30)
    first = anchor_of_candidate(said(50), reading(50, 50), None)
    assert len(first.readings) == 30
    contest, met = meet_best(GateAnchor("1", first.readings), "1", said(500), reading(5, 500), reading(9, 500), unread)
    assert met.readings == first.readings
    assert set(contest.evidence.keys) == set(first.readings)


def test_erased_signals_leave_the_set() -> None:
    known = GateAnchor("3", reading(30, 40).by_key(said(40)))
    contest, met = meet_best(known, "3", said(25), reading(25, 25), reading(0, 25), unread)
    assert len(contest.evidence.pairs) == len(met.readings) == 25


def test_version_from_outside_is_the_first_to_beat() -> None:
    contest, met = meet_best(None, "1", said(40), reading(30, 40), reading(20, 40), unread)
    assert met.best == "1"
    assert contest.gain().mean > 0
