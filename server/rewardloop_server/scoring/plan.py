"""plan: cuts the rows that wait together into runs.

Rows may be padded together, or run in buckets of similar length. If the graph is a decoder's and rows share their
prompt, they may also run as *tree rows* ``[prompt, response 1, .., response k]``, which pay for the prompt once. A mask
keeps their responses apart. A tree row that is alone in its run may attend to its prompt's keys and values instead,
which computes no scores between responses. A plan may mix all of these; the cost model decides.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewardloop.formats.text import Encoded
from rewardloop_server.scoring.cost import CostModel

# A tree row may cost as much as this many runs of its longest row alone, even above the limit of a run. Requests behind
# it wait that much longer, but its rows one by one would cost more in all.
_TREE_ROWS = 4

# Copying a token's keys and values takes as long as so many scores of attention (`tests/bench/attention_masks.py`).
_COPY_SCORES = 40

# Attention holds heads * tokens**2 scores of a row at once. For 12 heads and 4096 tokens these are 800 MB.
_MOST_TREE_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """One call of the graph.

    Attributes:
        items: For each row of the input the indices of the sequences that it holds, more than one in a tree row.
        length: Tokens of the longest item.
        cost_s: Estimated seconds.
    """

    items: tuple[tuple[int, ...], ...]
    length: int
    cost_s: float

    @property
    def rows(self) -> tuple[int, ...]:
        """Indices of the sequences, in the order in which the run gives their logits."""
        return tuple(i for item in self.items for i in item)

    @property
    def kind(self) -> Literal["rows", "tree"]:
        """Whether the run has tree rows."""
        return "tree" if any(len(item) > 1 for item in self.items) else "rows"

    @property
    def tokens(self) -> int:
        """Tokens of the input, padding included."""
        return len(self.items) * self.length


@dataclass(frozen=True, slots=True)
class Limit:
    """The most estimated seconds and tokens, padding included, of one run.

    A single row may always run, and a single tree row may take four times as long as its longest row.
    """

    seconds: float = math.inf
    tokens: float = math.inf


NO_LIMIT = Limit()


@dataclass(frozen=True, slots=True)
class Shapes:
    """Which lengths and sizes of runs suit a device.

    On CUDA attention takes its memory-efficient kernel for runs that keep a mask only if their length is a multiple of
    4 or, in half precision, of 8. Otherwise it holds heads * rows * length**2 scores at once. Whether a run keeps a
    mask depends on the graph (windows, an encoder's own mask) and on the run (tree rows), so all runs have such shapes.

    Attributes:
        multiple: Rows are padded to a multiple of so many tokens.
        longest: But rows of one sequence to no more tokens than these, because the graph may have no more positions.
        scores: Most rows * length**2 of a run. A single row may always run.
    """

    multiple: int = 1
    longest: float = math.inf
    scores: float = math.inf

    def padded(self, length: int) -> int:
        """Return the tokens to which a row is padded that is alone or the longest of its run."""
        full = -(-length // self.multiple) * self.multiple
        return int(self.longest) if length <= self.longest < full else full

    def below(self, tokens: float) -> float:
        """Return the most tokens of a row that is still no longer than ``tokens`` when it is padded."""
        return tokens if self.multiple == 1 else tokens // self.multiple * self.multiple


ANY_SHAPE = Shapes()


def has_response(group: Sequence[Encoded]) -> bool:
    """Return whether a row of a tree row has tokens after the prompt, without which nothing attends to the prompt."""
    return any(len(row.ids) > row.prompt_tokens for row in group)


def shares_prompt(group: Sequence[Encoded]) -> bool:
    """Return whether a tree row takes less time over its prompt's keys and values than by a mask. It `has_response`."""
    prompt = group[0].prompt_tokens
    sizes = [len(row.ids) - prompt for row in group]
    return _shared_scores(prompt, sizes) < (prompt + sum(sizes)) ** 2


def plan_runs(
    rows: Sequence[Encoded],
    cost: CostModel,
    *,
    trees: bool,
    shares: bool = False,
    limit: Limit = NO_LIMIT,
    shapes: Shapes = ANY_SHAPE,
) -> list[Run]:
    """Put every row into exactly one run, at the least cost that is found.

    The cost is never above that of one padded run, of a run for each row, of the best buckets, or of tree rows for all
    shared prompts, as far as these keep the limit.

    Args:
        rows: The sequences.
        cost: Estimates a run's seconds.
        trees: The graph takes tree rows.
        shares: A tree row that is alone in its run can attend to its prompt's keys and values.
        limit: Bounds of one run.
        shapes: Which runs suit the device.

    Returns:
        The runs in the order of their first row, so that the first run holds row 0.
    """
    if len(rows) == 1:  # as in every run of an idle service: there is nothing to search
        length = shapes.padded(len(rows[0].ids))
        return [Run(((0,),), length, cost.run_s(1, length))]
    groups = _by_prompt(rows) if trees and len(rows) > 1 else [(0, [i]) for i in range(len(rows))]
    longest = [shapes.below(_longest_tree(rows, members, cost, limit)) for _, members in groups]
    choices = {tuple(len(members) for _, members in groups)}
    if len(groups) < len(rows):
        # How much of a run's fixed cost a tree row bears depends on what else is in its run, so several charges are
        # tried.
        for charge_s in (0.0, cost.fixed_s, math.inf):
            counts = (
                _tree_rows(rows, *group, cost, charge_s, most) for group, most in zip(groups, longest, strict=True)
            )
            choices.add(tuple(counts))
    plans = [_partition(_items(rows, groups, counts, longest), cost, limit, shapes) for counts in choices]
    if shares and len(groups) < len(rows):
        plans.append(_over_prompts(rows, groups, longest, cost, limit, shapes))
    best = min(plans, key=_total_s)
    return sorted(best, key=lambda run: min(run.rows))


def _total_s(runs: Iterable[Run]) -> float:
    return sum(run.cost_s for run in runs)


def _over_prompts(
    rows: Sequence[Encoded],
    groups: Iterable[tuple[int, list[int]]],
    longest: Iterable[float],
    cost: CostModel,
    limit: Limit,
    shapes: Shapes,
) -> list[Run]:
    """Return runs over the prompts of the groups for which these are cheaper than a row each, and the best others."""
    found, alone = [], []
    for (prompt, members), most in zip(groups, longest, strict=True):
        singles = [_Item((i,), len(rows[i].ids)) for i in members]
        shared = _shared_runs(rows, prompt, members, most, cost, shapes)
        if shared and _total_s(shared) < _total_s(_partition(singles, cost, limit, shapes)):
            found += shared
        else:
            alone += singles
    return found + (_partition(alone, cost, limit, shapes) if alone else [])


def _shared_runs(
    rows: Sequence[Encoded], prompt: int, members: list[int], longest: float, cost: CostModel, shapes: Shapes
) -> list[Run]:
    """Return as few tree rows of a group as ``longest`` tokens allow, each alone in its run; none if no two fit."""
    for count in range(1, len(members)):
        parts = _deal(rows, prompt, members, count)
        if all(part.length <= longest for part in parts):
            padded = [_Item(part.rows, shapes.padded(part.length)) for part in parts]
            return [Run((part.rows,), part.length, _shared_s(rows, prompt, part, cost)) for part in padded]
    return []


def _shared_s(rows: Sequence[Encoded], prompt: int, part: _Item, cost: CostModel) -> float:
    """Return the seconds of a run of one tree row, by whichever attention takes less time."""
    if len(part.rows) == 1:
        return cost.run_s(1, part.length)
    scores = _shared_scores(prompt, [len(rows[i].ids) - prompt for i in part.rows])
    return cost.fixed_s + cost.per_token_s * part.length + cost.per_token2_s * min(scores, part.length**2)


def _shared_scores(prompt: int, sizes: Sequence[int]) -> int:
    """Return the scores of attention of responses of these sizes over a prompt, and as many as copies take the time of.

    Each response is padded to the longest, and has a copy of the prompt's keys and values before its own.
    """
    longest = max(sizes)
    return prompt**2 + len(sizes) * (prompt + longest) * (longest + _COPY_SCORES)


@dataclass(frozen=True, slots=True)
class _Item:
    """One row of an input: the sequences that it holds, and its tokens."""

    rows: tuple[int, ...]
    length: int


def _by_prompt(rows: Sequence[Encoded]) -> list[tuple[int, list[int]]]:
    """Group rows that share their prompt: the prompt's tokens, and the rows' indices. An empty prompt is not shared."""
    groups: dict[tuple[int, ...], list[int]] = {}
    alone = []
    for index, row in enumerate(rows):
        if row.prompt_tokens:
            groups.setdefault(tuple(row.ids[: row.prompt_tokens]), []).append(index)
        else:
            alone.append((0, [index]))
    return [(len(prompt), members) for prompt, members in groups.items()] + alone


def _longest_tree(rows: Sequence[Encoded], members: list[int], cost: CostModel, limit: Limit) -> float:
    """Return the most tokens that a tree row of these rows may have."""
    alone_s = cost.run_s(1, max(len(rows[i].ids) for i in members))
    return min(cost.longest(max(limit.seconds, _TREE_ROWS * alone_s)), limit.tokens, _MOST_TREE_TOKENS)


def _tree_rows(
    rows: Sequence[Encoded], prompt: int, members: list[int], cost: CostModel, charge_s: float, longest: float
) -> int:
    """Return into how many tree rows of similar length a group is best cut.

    Each costs ``charge_s`` beside its tokens. So ``n`` of them cost ``n * (charge_s + row_s(prompt)) + per_token2 *
    responses**2 / n``, and a part that does not depend on ``n``.
    """
    count = len(members)
    responses = sum(len(rows[i].ids) - prompt for i in members)
    least = math.ceil(responses / (longest - prompt)) if longest > prompt else count
    each, shared = charge_s + cost.row_s(prompt), cost.per_token2_s * responses**2
    if each == 0:
        return count
    best = math.sqrt(shared / each)
    n = min((max(1, math.floor(best)), math.ceil(best)), key=lambda n: n * each + shared / n if n else math.inf)
    return min(count, max(least, n))


def _items(
    rows: Sequence[Encoded], groups: Iterable[tuple[int, list[int]]], counts: Iterable[int], longest: Iterable[float]
) -> list[_Item]:
    items = []
    for (prompt, members), count, most in zip(groups, counts, longest, strict=True):
        while True:
            parts = _deal(rows, prompt, members, count)
            if count == len(members) or all(part.length <= most for part in parts if len(part.rows) > 1):
                break
            count += 1
        items += parts
    return items


def _deal(rows: Sequence[Encoded], prompt: int, members: list[int], count: int) -> list[_Item]:
    """Deal a group's rows out, the longest response first, each to the tree row that is shortest so far."""
    if count == len(members):
        return [_Item((i,), len(rows[i].ids)) for i in members]
    heap: list[tuple[int, int]] = [(prompt, n) for n in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(members, key=lambda i: -len(rows[i].ids)):
        length, n = heap[0]
        heapq.heapreplace(heap, (length + len(rows[index].ids) - prompt, n))
        parts[n].append(index)
    lengths = {n: length for length, n in heap}
    return [_Item(tuple(sorted(part)), lengths[n]) for n, part in enumerate(parts) if part]


def _partition(items: list[_Item], cost: CostModel, limit: Limit, shapes: Shapes) -> list[Run]:
    """Return the cheapest runs of the items within the limit, in shapes that suit the device.

    If the items are sorted by length, some cheapest partition has contiguous runs, because exchanging items between
    two runs so that the longer ones are together pads no run more. So the best partition of the items from ``i`` on is
    the best first run ``i:j`` and the best partition from ``j`` on.
    """
    items = sorted(items, key=lambda item: -item.length)
    n = len(items)
    padded = [item.length if shapes.multiple == 1 else shapes.padded(item.length) for item in items]
    lengths = np.array(padded, dtype=np.float64)
    each = lengths * (cost.per_token_s + cost.per_token2_s * lengths)
    with np.errstate(divide="ignore"):
        most = np.minimum((limit.seconds - cost.fixed_s) / each, limit.tokens / lengths)
        most = np.minimum(most, shapes.scores / lengths**2)
    stops = np.minimum(np.arange(n) + np.clip(np.nan_to_num(most, posinf=n), 1, n), n).astype(np.int64).tolist()
    counts = np.arange(1.0, n + 1)
    best = np.zeros(n + 1)
    cut = [n] * n
    for i in range(n - 1, -1, -1):
        totals = counts[: stops[i] - i] * each[i]
        totals += best[i + 1 : stops[i] + 1]
        j = int(totals.argmin())
        best[i] = cost.fixed_s + totals[j]
        cut[i] = i + 1 + j
    runs, i = [], 0
    while i < n:
        part = items[i : cut[i]]
        runs.append(Run(tuple(item.rows for item in part), padded[i], cost.run_s(len(part), padded[i])))
        i = cut[i]
    return runs
