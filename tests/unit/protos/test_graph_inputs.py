"""The arrays of a tree row, and what it costs the event loop to make them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from rewardloop.formats.graphs.inputs import decoder_rows, mask_of, tree_rows
from rewardloop.formats.text import Encoded


def group(prompt: int, *sizes: int) -> list[Encoded]:
    return [
        Encoded([1000 + i for i in range(prompt)] + [2000 + i for i in range(n)], None, False, n, prompt) for n in sizes
    ]


def test_positions_of_each_response_go_on_from_the_prompts() -> None:
    row = tree_rows([group(2, 1, 0, 3)], 8, 7)
    assert row["input_ids"].tolist() == [[1000, 1001, 2000, 2000, 2001, 2002, 7, 7]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 2, 3, 4, 0, 0]]
    assert row["branches"].tolist() == [[0, 0, 1, 3, 3, 3, 4, 4]]
    assert row["ends"].tolist() == [2, 1, 5]


def test_ends_are_flat_in_the_order_of_the_groups() -> None:
    rows = tree_rows([group(2, 1, 2), group(1, 3)], 6, 0)
    assert rows["ends"].tolist() == [2, 4, 9]
    assert rows["branches"].tolist() == [[0, 0, 1, 2, 2, 3], [0, 1, 1, 1, 2, 2]]


def test_only_a_row_that_is_asked_for_says_where_its_responses_are() -> None:
    responses = group(2, 1, 0, 3)
    for inputs in (tree_rows([responses], 8, 0), decoder_rows(responses, 5, 0)):
        assert inputs["response_columns"].shape == (0, 0)
        assert inputs["response_places"].shape == (0,)
    row = tree_rows([responses], 8, 0, shares_prompt=True)
    assert row["response_columns"].tolist() == [[2, 3, 4], [3, 4, 5], [3, 4, 5]]
    assert row["response_places"].tolist() == [0, 6, 7, 8, 0, 0]


def test_the_columns_of_a_last_empty_response_are_in_the_row() -> None:
    row = tree_rows([group(2, 3, 0)], 5, 0, shares_prompt=True)
    assert row["response_columns"].tolist() == [[2, 3, 4], [4, 4, 4]]
    assert mask_of(row["branches"], 5)[0, 0, 4].tolist() == [True] * 5


@pytest.mark.parametrize("responses", [8, 100])
def test_a_tree_row_of_4096_tokens_is_laid_out_in_a_few_times_what_its_ids_take(responses: int) -> None:
    """Beside an idle core it takes 0.2 ms (`python tests/bench/tree_rows.py`); the event loop waits for it."""
    size = 2048 // responses
    rows = group(4096 - responses * size, *[size] * responses)
    ids = [i for row in rows for i in row.ids][:4096]
    ways: dict[str, Callable[[], object]] = {
        "ids": lambda: np.array(ids, dtype=np.int64),
        "row": lambda: tree_rows([rows], 4096, 0, shares_prompt=True),
    }
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(50):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            least[name] = min(least[name], time.perf_counter() - started)
    assert least["row"] < 6 * least["ids"]
