"""Cutting a batch into runs never loses, doubles or invents a row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewardloop_server.plan import plan_rows


@given(st.lists(st.integers(1, 4096), max_size=200))
def test_every_row_is_in_exactly_one_run(lengths: list[int]) -> None:
    runs = plan_rows(lengths)
    assert sorted(i for run in runs for i in run) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=200))
def test_padding_is_bounded(lengths: list[int]) -> None:
    for run in plan_rows(lengths):
        assert min(lengths[i] for i in run) >= 0.75 * max(lengths[i] for i in run)
