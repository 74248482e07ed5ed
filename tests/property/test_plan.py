"""Cutting rows into runs loses, doubles or invents none, keeps the limit, and is never beaten by a simple plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.plan import ANY_SHAPE, Limit, Run, Shapes, plan_runs

costs = st.builds(CostModel, st.floats(1e-4, 1e-1), st.floats(1e-7, 1e-3), st.floats(0, 1e-6))
limits = st.one_of(
    st.just(Limit()), st.builds(Limit, seconds=st.floats(1e-4, 2.0)), st.builds(Limit, tokens=st.integers(1, 2000))
)
shapes = st.builds(
    Shapes,
    multiple=st.sampled_from([4, 8]),
    longest=st.sampled_from([math.inf, 700, 701]),
    scores=st.one_of(st.just(math.inf), st.floats(1e4, 1e7)),
)


@st.composite
def batches(draw: st.DrawFn) -> list[Encoded]:
    """Rows of up to six prompts, shuffled; prompts are empty to all of a row."""
    prompts = draw(st.lists(st.integers(0, 400), min_size=1, max_size=6))
    rows = []
    for which, responses in enumerate(draw(st.lists(st.integers(0, 300), max_size=8)) for _ in prompts):
        prompt = [which + 1] * prompts[which]
        rows += [Encoded([*prompt, *[9] * max(n, not prompt)], None, False, 1, len(prompt)) for n in responses]
    return draw(st.permutations(rows))


def total(runs: list[Run]) -> float:
    return sum(run.cost_s for run in runs)


@given(batches(), costs, limits, st.booleans())
def test_every_row_is_in_exactly_one_run(rows: list[Encoded], cost: CostModel, limit: Limit, trees: bool) -> None:
    runs = plan_runs(rows, cost, trees=trees, limit=limit)
    assert sorted(i for run in runs for i in run.rows) == list(range(len(rows)))
    assert not rows or 0 in runs[0].rows


@given(batches(), costs, limits, st.booleans())
def test_run_with_more_than_one_row_keeps_the_limit(
    rows: list[Encoded], cost: CostModel, limit: Limit, trees: bool
) -> None:
    for run in plan_runs(rows, cost, trees=trees, limit=limit):
        seconds = limit.seconds
        if len(run.items) == 1:  # a tree row may cost as much as four of its prompt's rows
            first = rows[run.rows[0]]
            prompt = first.ids[: first.prompt_tokens]
            alike = [row for row in rows if row.ids[: row.prompt_tokens] == prompt]
            seconds = max(seconds, 4 * cost.run_s(1, max(len(row.ids) for row in alike)))
        assert len(run.rows) == 1 or (run.cost_s <= seconds * (1 + 1e-9) and run.tokens <= limit.tokens)


@given(batches(), costs, limits)
def test_tree_rows_over_their_prompts_keep_the_limit_and_make_no_plan_dearer(
    rows: list[Encoded], cost: CostModel, limit: Limit
) -> None:
    runs = plan_runs(rows, cost, trees=True, shares=True, limit=limit)
    assert sorted(i for run in runs for i in run.rows) == list(range(len(rows)))
    assert total(runs) <= total(plan_runs(rows, cost, trees=True, limit=limit)) * (1 + 1e-9)
    for run in runs:
        assert len(run.rows) == 1 or run.tokens <= limit.tokens
        assert len(run.items) == 1 or run.cost_s == pytest.approx(cost.run_s(len(run.items), run.length))


@given(batches(), costs, limits, shapes, st.booleans(), st.booleans())
def test_runs_have_shapes_that_suit_the_device(
    rows: list[Encoded], cost: CostModel, limit: Limit, suits: Shapes, trees: bool, shares: bool
) -> None:
    runs = plan_runs(rows, cost, trees=trees, shares=shares, limit=limit, shapes=suits)
    assert sorted(i for run in runs for i in run.rows) == list(range(len(rows)))
    for run in runs:
        assert run.length % suits.multiple == 0 or run.length == suits.longest
        assert len(run.items) == 1 or len(run.items) * run.length**2 <= suits.scores * (1 + 1e-9)
        assert len(run.rows) == 1 or run.tokens <= limit.tokens
        tokens = max(_row_tokens(rows, item) for item in run.items)
        assert tokens <= run.length < tokens + suits.multiple
        if run.kind == "rows" and tokens <= suits.longest:
            assert run.length <= suits.longest
    if len(runs) > 1 and suits.scores == math.inf and limit == Limit():
        assert total(runs) <= sum(cost.run_s(1, suits.padded(len(row.ids))) for row in rows) * (1 + 1e-9)


@given(batches(), costs, limits, st.booleans(), st.booleans())
def test_a_device_that_takes_any_shape_gets_no_padding(
    rows: list[Encoded], cost: CostModel, limit: Limit, trees: bool, shares: bool
) -> None:
    runs = plan_runs(rows, cost, trees=trees, shares=shares, limit=limit)
    assert runs == plan_runs(rows, cost, trees=trees, shares=shares, limit=limit, shapes=ANY_SHAPE)
    assert all(run.length == max(_row_tokens(rows, item) for item in run.items) for run in runs)


def test_two_tree_rows_of_the_greatest_length_do_not_share_a_run_that_keeps_its_mask() -> None:
    rows = [Encoded([1 + group] * 2000 + [9] * 1000, None, False, 1, 2000) for group in range(2) for _ in range(2)]
    cost = CostModel(1e-1, 1e-6, 0.0)
    (together,) = plan_runs(rows, cost, trees=True)
    assert [len(item) for item in together.items] == [2, 2]
    apart = plan_runs(rows, cost, trees=True, shapes=Shapes(8, 4096, 4096.0**2))
    assert [(len(run.items), run.length, run.kind) for run in apart] == [(1, 4000, "tree")] * 2


def _row_tokens(rows: list[Encoded], item: tuple[int, ...]) -> int:
    prompt = rows[item[0]].prompt_tokens if len(item) > 1 else 0
    return prompt + sum(len(rows[i].ids) - prompt for i in item)


def test_a_group_is_one_tree_row_where_its_responses_compute_no_scores_with_each_other() -> None:
    rows = [Encoded([1] * 16 + [9] * 200, None, False, 200, 16) for _ in range(16)]
    cost = CostModel(1e-3, 1e-5, 1e-8)
    assert [run.kind for run in plan_runs(rows, cost, trees=True)] == ["rows"]
    (run,) = plan_runs(rows, cost, trees=True, shares=True)
    assert run.items == (tuple(range(16)),)
    assert run.cost_s == pytest.approx(1e-3 + 1e-5 * 3216 + 1e-8 * (16**2 + 16 * 216 * (200 + 40)))


@given(batches(), costs, limits)
def test_rows_of_a_tree_share_their_prompt_and_fill_its_length(
    rows: list[Encoded], cost: CostModel, limit: Limit
) -> None:
    for run in plan_runs(rows, cost, trees=True, limit=limit):
        lengths = []
        for item in run.items:
            prompt = rows[item[0]].prompt_tokens
            assert all(rows[i].ids[: rows[i].prompt_tokens] == rows[item[0]].ids[:prompt] for i in item)
            lengths.append(prompt + sum(len(rows[i].ids) - prompt for i in item))
        assert run.length == max(lengths)
        assert run.cost_s == pytest.approx(cost.run_s(len(run.items), run.length))


@given(batches(), costs, st.booleans())
def test_no_simple_plan_is_cheaper(rows: list[Encoded], cost: CostModel, trees: bool) -> None:
    if not rows:
        return
    lengths = [len(row.ids) for row in rows]
    found = total(plan_runs(rows, cost, trees=trees)) * (1 - 1e-9)
    assert found <= cost.run_s(len(rows), max(lengths))
    assert found <= sum(cost.run_s(1, n) for n in lengths)
    if trees:
        responses: dict[tuple[int, ...], int] = {}
        for row in rows:
            prompt = tuple(row.ids[: row.prompt_tokens])
            responses[prompt] = responses.get(prompt, len(prompt)) + len(row.ids) - len(prompt)
        if () not in responses and max(responses.values()) <= 4096:
            assert found <= cost.run_s(len(responses), max(responses.values()))
            assert found <= sum(cost.run_s(1, n) for n in responses.values())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), costs, limits)
def test_buckets_are_the_best_there_are(lengths: list[int], cost: CostModel, limit: Limit) -> None:
    rows = [Encoded([1] * n, None, False) for n in lengths]

    def best(left: frozenset[int]) -> float:
        """By trying every partition."""
        if not left:
            return 0.0
        first, *others = left
        least = math.inf
        for chosen in range(2 ** len(others)):
            run = [first, *(o for k, o in enumerate(others) if chosen >> k & 1)]
            longest = max(lengths[i] for i in run)
            seconds = cost.run_s(len(run), longest)
            if len(run) == 1 or (seconds <= limit.seconds and len(run) * longest <= limit.tokens):
                least = min(least, seconds + best(left.difference(run)))
        return least

    assert total(plan_runs(rows, cost, trees=False, limit=limit)) == pytest.approx(best(frozenset(range(len(rows)))))
