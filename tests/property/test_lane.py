"""A lane's order and fairness, whatever comes and goes. No engine: the rows that a run takes are chosen here."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop.formats.text import Encoded
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.lane import Group, Lane, Part


class _Version:
    """As much of a loaded version as a lane looks at."""

    manifest = SimpleNamespace(heads=1)


VERSIONS = [_Version(), _Version()]


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


METRICS = ServerMetrics()


def lane() -> Lane:
    return Lane("production", max_tokens=10**9, max_s=10**9, metrics=METRICS)


def group(loop, caller: str, sizes: list[int], deadline: float | None = None, version: int = 0) -> Group:
    rows = [Encoded([1] * size, None, truncated=False) for size in sizes]
    return Group(VERSIONS[version], rows, caller, deadline, loop.create_future())  # type: ignore[arg-type]


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=6)
coming = st.tuples(st.sampled_from("abc"), sizes, st.one_of(st.none(), st.floats(0, 100)), st.integers(0, 1))


@given(steps=st.lists(st.one_of(coming, st.integers(1, 60), st.just("drop")), max_size=40))
def test_every_row_is_taken_once_or_dropped_with_its_group_and_tokens_are_counted(loop, steps) -> None:
    subject, waiting, taken = lane(), [], Counter()
    steps = iter([*steps])
    while (step := next(steps, 60 if subject.tokens else None)) is not None:
        if isinstance(step, tuple):
            waiting.append(group(loop, *step))
            subject.push(waiting[-1])
        elif step == "drop" and waiting:
            subject.drop(waiting.pop(0))
        elif isinstance(step, int):
            rows = subject.window(step)
            assert len({each.model for each, _ in rows}) <= 1
            assert len(rows) <= 1 or sum(len(each.rows[i].ids) for each, i in rows) <= step
            subject.take(rows, 0.0)
            taken.update(rows)
        assert subject.tokens == sum(each.tokens for each in waiting)
    assert subject.tokens == 0
    assert not subject.window(60)
    assert all(taken[each, i] == 1 for each in waiting for i in range(len(each.rows)))
    assert max(taken.values(), default=1) == 1


@given(groups=st.lists(st.tuples(sizes, st.one_of(st.none(), st.floats(0, 100))), min_size=1, max_size=15))
def test_earliest_deadline_is_first_within_a_caller_then_the_first_to_come(loop, groups) -> None:
    subject = lane()
    pushed = [group(loop, "a", *each) for each in groups]
    for each in pushed:
        subject.push(each)
    order = list(dict.fromkeys(each for each, _ in subject.window(10**6)))
    assert order == sorted(pushed, key=lambda each: (each.due, each.order))


@given(
    a=st.lists(st.integers(1, 30), min_size=60, max_size=60), b=st.lists(st.integers(1, 30), min_size=60, max_size=60)
)
def test_callers_that_keep_waiting_differ_by_no_more_than_two_runs(loop, a, b) -> None:
    subject = lane()
    for size in a:
        subject.push(group(loop, "a", [size]))
    for size in b:
        subject.push(group(loop, "b", [size]))
    served = Counter({"a": 0, "b": 0})
    left = {"a": sum(a), "b": sum(b)}
    while min(left.values()) > 30:
        rows = subject.window(40)
        subject.take(rows, 0.0)
        for each, i in rows:
            served[each.caller] += len(each.rows[i].ids)
            left[each.caller] -= len(each.rows[i].ids)
        assert abs(served["a"] - served["b"]) <= 2 * 40


@given(backlog=st.lists(st.integers(1, 30), min_size=5, max_size=60), runs=st.integers(0, 4), size=st.integers(1, 30))
def test_one_that_comes_is_in_one_of_the_next_two_runs(loop, backlog, runs, size) -> None:
    subject = lane()
    for each in backlog:
        subject.push(group(loop, "bulk", [each]))
    for _ in range(runs):
        subject.take(subject.window(30), 0.0)
    small = group(loop, "small", [size])
    subject.push(small)
    for _ in range(2):
        subject.take(subject.window(30), 0.0)
    assert not small.waiting


@given(backlog=st.lists(st.integers(20, 30), min_size=5, max_size=60), runs=st.integers(1, 4), size=st.integers(1, 30))
def test_one_that_comes_beside_the_backlog_of_one_other_overtakes_it(loop, backlog, runs, size) -> None:
    subject = lane()
    for each in backlog:
        subject.push(group(loop, "bulk", [each]))
    for _ in range(runs):
        subject.take(subject.window(30), 0.0)
    chosen = subject.window(30)
    assert not subject.is_overtaken(chosen)
    small = group(loop, "small", [size])
    subject.push(small)
    assert subject.is_overtaken(chosen)
    assert subject.window(30)[0] == (small, 0)


def test_callers_that_come_one_after_the_other_leave_a_backlog_every_third_run(loop) -> None:
    subject = lane()
    for _ in range(20):
        subject.push(group(loop, "bulk", [30]))
    taken: Counter[str] = Counter()
    for turn in range(20):
        ((each, _), *_) = rows = subject.window(30)
        subject.take(rows, 0.0)
        taken[each.caller.split()[0]] += 1
        if all(waiting.caller == "bulk" for waiting in subject.groups()):
            subject.push(group(loop, f"new {turn}", [30]))
    assert taken["bulk"] >= 6


@given(
    groups=st.lists(st.tuples(st.sampled_from("abc"), sizes), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 3), min_size=80, max_size=80),
)
def test_rows_put_back_are_taken_again_each_once_and_only_with_their_part(loop, groups, cuts) -> None:
    subject = lane()
    pushed = [group(loop, *each) for each in groups]
    for each in pushed:
        subject.push(each)
    rows = subject.window(60)
    subject.take(rows, 0.0)
    parts = [Part() for _ in range(4)]
    cut = {row: parts[n] for row, n in zip(rows, cuts, strict=False)}
    for part in parts:
        subject.put_back((row for row in rows if cut[row] is part), part)
    assert subject.tokens == sum(each.tokens for each in pushed) == sum(sum(each) for _, each in groups)
    taken: Counter = Counter()
    while again := subject.window(60):
        assert len({cut.get(row) for row in again}) == 1
        subject.take(again, 0.0)
        taken.update(again)
    assert taken == Counter((each, i) for each in pushed for i in range(len(each.rows)))
    assert subject.tokens == 0
