"""The cost model of a decoder is fitted to plain rows and to tree rows, whose attention takes different times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rewardloop.formats.text import Encoded
from rewardloop_server.loading import warm
from rewardloop_server.scoring.plan import Run

FIXED_S, TOKEN_S, PLAIN_TOKEN2_S, MASK_TOKEN2_S = 1e-4, 1e-7, 1e-9, 3e-9


class SlowDecoder:
    """A model whose runs take a known time by its own clock; a score of a tree row takes three times that of a plain
    one.

    Args:
        is_decoder: It takes tree rows, too.
        slowness: By how much longer than that a run takes at each of its places.
    """

    is_elsewhere = False

    def __init__(self, *, is_decoder: bool = True, slowness: Sequence[float] = (1.0,)) -> None:
        self.places = tuple(f"cuda:{i}" for i in range(len(slowness)))
        self.slowness = slowness
        self.manifest = SimpleNamespace(model="reward", version="1", max_length=1024)
        self.signature = SimpleNamespace(is_decoder=is_decoder, shares_prompts=False)
        self.now_s = 0.0
        self.ran: list[Run] = []

    def lay_out(self, rows: list[Encoded], run: Run) -> Run:
        return run

    def options(self) -> None:
        return None

    def execute(self, run: Run, *, place: int, alone: bool, options: None) -> None:
        self.ran.append(run)
        token2_s = MASK_TOKEN2_S if run.kind == "tree" else PLAIN_TOKEN2_S
        run_s = FIXED_S + len(run.items) * run.length * (TOKEN_S + token2_s * run.length)
        self.now_s += self.slowness[place] * run_s


class Unwatched:
    """A guard that stops nothing."""

    @contextmanager
    def running(self, options: None) -> Iterator[None]:
        yield


def fitted(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cost model of a version, by its own clock."""
    clock = SimpleNamespace(perf_counter=lambda: model.now_s, monotonic=lambda: model.now_s)
    monkeypatch.setattr(warm, "time", clock)
    unwatched: Any = Unwatched()
    return warm.warm_up(model, 5, unwatched)


def test_plain_rows_and_tree_rows_are_both_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowDecoder()
    cost = fitted(model, monkeypatch)
    shapes = {
        kind: {(len(run.items), run.length) for run in model.ran if run.kind == kind} for kind in ("rows", "tree")
    }
    assert {(1, 16), (8, 16), (1, 128), (2, 256), (1, 1024)} <= shapes["rows"]
    assert shapes["tree"] == {(8, 16), (2, 256)}
    # Most rows of a service are plain, and the fit is nearer to these.
    middle = (PLAIN_TOKEN2_S + MASK_TOKEN2_S) / 2
    assert PLAIN_TOKEN2_S < cost.per_token2_s < middle


def test_an_encoder_is_timed_on_plain_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowDecoder(is_decoder=False)
    cost = fitted(model, monkeypatch)
    assert {run.kind for run in model.ran} == {"rows"}
    assert cost.per_token2_s == pytest.approx(PLAIN_TOKEN2_S)
    assert cost.per_token_s == pytest.approx(TOKEN_S)


@pytest.mark.parametrize("slowness", [(1.0, 3.0, 2.0), (3.0, 1.0, 2.0)])
def test_of_unequal_gpus_the_slowest_counts(slowness: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    one = fitted(SlowDecoder(is_decoder=False), monkeypatch)
    model = SlowDecoder(is_decoder=False, slowness=slowness)
    cost = fitted(model, monkeypatch)
    for length in (16, 256, 1024):
        assert cost.run_s(4, length) == pytest.approx(3 * one.run_s(4, length))
