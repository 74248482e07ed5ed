"""warm: runs a version before it serves, and fits the cost model to the times of these runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from rewardloop.formats.text import Encoded, Turn
from rewardloop_server.calls.errors import NotLoadable, told
from rewardloop_server.loading.limits import LoadGuard
from rewardloop_server.scoring.cost import CostModel, Timing, fit, worst_error
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.plan import Run

log = structlog.get_logger()

# Rows and tokens of the timed runs. A run of one row of the model's greatest length is added.
_SHAPES = ((1, 16), (8, 16), (1, 128), (4, 32), (1, 256), (8, 64), (2, 256))
# The same of a decoder's timed runs of tree rows. These have a mask and plain rows have none, so that attention takes
# other kernels; one cost model stands for both.
_TREES = ((8, 16), (2, 256))
_ALWAYS = 3  # so many of the first, the longest, and the first of tree rows are run whatever they cost
_REPEATS = 3
_BUDGET_S = 0.5


@dataclass(frozen=True, slots=True)
class _Shape:
    """So many rows of so many tokens, plain ones or tree rows of two responses to one prompt."""

    rows: int
    length: int
    are_trees: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def named(self, token: int) -> str:
        """Return what messages call a run of one token, repeated."""
        return f"{self.rows} x {self.length} tokens of id {token}{' in tree rows' if self.are_trees else ''}"


def warm_up(
    model: RewardModel, token: int, guard: LoadGuard, large_shapes: Sequence[tuple[int, int]] = ()
) -> CostModel:
    """Run the model on several shapes at each place, and fit the cost model to the least time of each shape.

    A run may go to any place, so the slowest place counts. A run that would end after `_BUDGET_S` is left out, so a
    large model is fitted to few shapes.

    Args:
        model: The version to run.
        token: The highest id that its texts can have. Together with a row of the greatest length it shows that the
            graph has every id and position.
        guard: Stops a run that does not end.
        large_shapes: Rows and tokens of further runs that are timed.

    Raises:
        NotLoadable: The graph does not run, or does not give finite logits of the right shape.
    """
    started = time.monotonic()
    least = [_least(model, place, token, guard, large_shapes) for place in range(len(model.places))]
    slowest = {shape: max(each[shape] for each in least) for shape in least[0] if all(shape in each for each in least)}
    timings = [Timing(shape.rows, shape.length, seconds) for shape, seconds in slowest.items()]
    cost = fit(timings)
    log.info(
        "cost model fitted",
        version=model.manifest.version,
        fixed_ms=round(cost.fixed_s * 1e3, 3),
        per_token_us=round(cost.per_token_s * 1e6, 3),
        per_token2_ns=round(cost.per_token2_s * 1e9, 3),
        timings=len(timings),
        worst_error=round(worst_error(cost, timings), 3),
        seconds=round(time.monotonic() - started, 3),
    )
    return cost


def _least(
    model: RewardModel, place: int, token: int, guard: LoadGuard, large_shapes: Sequence[tuple[int, int]]
) -> dict[_Shape, float]:
    """Return the least seconds of each shape that was run at a place."""
    longest = model.manifest.max_length
    shapes = [*(_Shape(*each) for each in (*_SHAPES, *large_shapes) if each[1] < longest), _Shape(1, longest)]
    trees = [_Shape(*each, are_trees=True) for each in _TREES if model.signature.is_decoder and each[1] < longest]
    needed = {*shapes[:_ALWAYS], shapes[-1], *trees[:1]}
    _run(model, shapes[0], token, guard, place, alone=False)
    # A session's first run is slow and not counted.
    token_s = _run(model, shapes[0], token, guard, place) / shapes[0].tokens
    if model.signature.shares_prompts and longest >= 4:
        _timed(model, *_group(longest, token), guard, "a group of 16 responses", place)
    started = time.monotonic()
    least: dict[_Shape, float] = {}
    for shape in (*shapes, *trees) * _REPEATS:
        expected_s = least.get(shape, token_s * shape.tokens)
        is_needed = shape in needed and shape not in least
        if is_needed or time.monotonic() - started + expected_s < _BUDGET_S:
            least[shape] = min(least.get(shape, math.inf), _run(model, shape, token, guard, place))
            token_s = least[shape] / shape.tokens
    return least


def check(model: RewardModel, count: int, length: int, token: int, guard: LoadGuard) -> None:
    """Run the graph once at each place on one token, repeated.

    Args:
        model: The version to run.
        count: Rows of the graph's input. A decoder's row holds two responses to one prompt, unless it has the model's
            greatest length, so that the positions of that run go as far as those of any text.
        length: Tokens of each row.
        token: Id of the token.
        guard: Stops a run that does not end.

    Raises:
        NotLoadable: The graph does not run, or does not give finite logits of the right shape.
    """
    are_trees = model.signature.is_decoder and 4 <= length < model.manifest.max_length
    for place in range(len(model.places)):
        _run(model, _Shape(count, length, are_trees), token, guard, place)


def _run(model: RewardModel, shape: _Shape, token: int, guard: LoadGuard, place: int, *, alone: bool = True) -> float:
    """Run the version once at a place on one token, repeated, and return the seconds that it took.

    A server elsewhere is given random tokens up to this one instead. It may keep what it has computed of the beginnings
    of rows, and would take no time for those that it knows.
    """
    rows, run = _example(shape, token)
    if not model.is_elsewhere:
        return _timed(model, rows, run, guard, shape.named(token), place, alone)
    return _timed(model, _random(rows, token), run, guard, f"{shape.rows} x {shape.length} tokens", place, alone)


def _timed(
    model: RewardModel, rows: list[Encoded], run: Run, guard: LoadGuard, named: str, place: int, alone: bool = True
) -> float:
    """Execute a run, and return the seconds that it took. Raises NotLoadable, which names the run, as `check` does."""
    try:
        feeds = model.lay_out(rows, run)
        options = model.options()
        started = time.perf_counter()
        with guard.running(options):
            model.execute(feeds, place=place, alone=alone, options=options)
    except Exception as error:  # ONNX Runtime raises bare Exceptions for a bad graph, and NumPy its own
        name = f"{model.manifest.model} {model.manifest.version}"
        where = "" if model.places[place] == "cpu" else f" on {model.places[place]}"
        raise NotLoadable(f"{name} does not run on {named}{where}: {told(error)}") from error
    return time.perf_counter() - started


def check_text(model: RewardModel) -> None:
    """Score a text. Raises NotLoadable if the tokenizer and the text format do not give what the graph takes."""
    where = f"{model.manifest.model} {model.manifest.version}"
    try:
        model.run([model.encoder.pair((Turn("user", "Hello"),), "Hello")])
    except Exception as error:  # as above, and tokenizers raises its own
        raise NotLoadable(f"{where} does not score a text: {told(error)}") from error


def _group(longest: int, token: int) -> tuple[list[Encoded], Run]:
    """Return 16 responses to one prompt, and a run that holds them in one row, over the prompt's keys and values."""
    prompt = min(8, longest // 2)
    size = min(16, longest - prompt)
    rows = [Encoded([token] * (prompt + size), None, truncated=False, prompt_tokens=prompt)] * 16
    return rows, Run((tuple(range(16)),), prompt + 16 * size, 0.0)


def _random(rows: Sequence[Encoded], highest: int) -> list[Encoded]:
    """Return sequences of these lengths, of random ids, each with the highest at its end."""
    random = np.random.default_rng()
    drawn = [random.integers(0, highest + 1, len(row.ids) - 1).tolist() for row in rows]
    return [Encoded([*ids, highest], None, truncated=False) for ids in drawn]


def _example(shape: _Shape, token: int) -> tuple[list[Encoded], Run]:
    """Return sequences of one token, repeated, and a run that holds them in the rows of a shape."""
    count, length = shape.rows, shape.length
    if not shape.are_trees:
        rows = [Encoded([token] * length, None, truncated=False)] * count
        return rows, Run(tuple((i,) for i in range(count)), length, 0.0)
    prompt = length // 2
    first, second = (length - prompt) // 2, length - prompt - (length - prompt) // 2
    pair = [Encoded([token] * (prompt + n), None, truncated=False, prompt_tokens=prompt) for n in (first, second)]
    return pair * count, Run(tuple((2 * i, 2 * i + 1) for i in range(count)), length, 0.0)
