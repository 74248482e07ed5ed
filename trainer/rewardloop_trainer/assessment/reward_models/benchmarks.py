"""Reads files of reward-model benchmarks in their own formats, and scores a model on them.

| file | rows | right if |
| --- | --- | --- |
| RewardBench | ``{prompt, chosen, rejected, subset}`` | the chosen answer scores higher |
| RewardBench 2 | ``{prompt, chosen: [..], rejected: [..], subset}`` | each chosen answer beats each rejected one |
| RM-Bench | ``{prompt, chosen: [3], rejected: [3], domain}``, by style: terse, detailed, with markdown | see below |
| JudgeBench | ``{question, response_A, response_B, label: "A>B" or "B>A", source}`` | the better answer scores higher |

An RM-Bench row gives three figures: *hard* are its pairs whose rejected answer has the richer style, *normal* those of
one style, and *easy* those whose chosen answer has it. A row's value is the mean of its nine pairs. Equal scores count
half of a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rewardloop_data.rows import Json, RowError, completion_of, kind_of, text_of, turns_of
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.clusters import Ints
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.split import keys_of
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.reward.evaluate import Floats

_STYLES = 3
_PART = 64
Row: TypeAlias = dict[str, Json]


class UnusableBenchmark(ValueError):
    """Raised for a file that is no benchmark, or a row of another form. The message names the file and the row."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Attributes:
        subset: The part of the benchmark that it belongs to.
        prompt: The conversation.
        chosen: The right answers.
        rejected: The wrong ones.
        by_style: Whether both are listed by style, from the plainest to the richest.
    """

    subset: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    by_style: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark with its name and its items."""

    name: str
    items: tuple[Item, ...]

    @property
    def clusters(self) -> Ints:
        """The number of each item's prompt."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(keys_of(i.prompt).root, len(numbers)) for i in self.items], dtype=np.int64)

    @property
    def subsets(self) -> dict[str, Ints]:
        """The places of each subset's items, the subsets in the file's order."""
        places: dict[str, list[int]] = {}
        for i, item in enumerate(self.items):
            places.setdefault(item.subset, []).append(i)
        return {name: np.array(found, dtype=np.int64) for name, found in places.items()}


@dataclass(frozen=True, slots=True)
class Scored:
    """How a model does on a benchmark.

    Attributes:
        right: (items,), from 0 to 1.
        styles: "easy", "normal" and "hard" with their values, (items by style,) each; empty for other benchmarks.
        scores: The score of each answer, chosen ones first, one inner list an item; -inf for one that has none.
    """

    right: Floats
    styles: dict[str, Floats]
    scores: list[list[float]]


def read_benchmark(path: Path) -> Benchmark:
    """Read a file: JSONL, plain or gzipped, or Parquet.

    Raises:
        UnusableBenchmark: If a row has none of the forms above, or there is no row.
        UnreadableFile: If the file cannot be read.
    """
    items: list[Item] = []
    for line in SourceFile.of(path).lines():
        try:
            items.append(_item(line.value()))
        except RowError as error:
            raise UnusableBenchmark(f"{path}:{line.number}: {error}") from error
    if not items:
        raise UnusableBenchmark(f"{path}: has no row")
    return Benchmark(path.name.partition(".")[0], tuple(items))


def score_benchmark(benchmark: Benchmark, score: Scorer, on_part: Callable[[int], None] = lambda done: None) -> Scored:
    """Score every answer, and say which items are right. ``on_part`` is told how many items are done."""
    scores: list[list[float]] = []
    for start in range(0, len(benchmark.items), _PART):
        part = benchmark.items[start : start + _PART]
        found = score([item.prompt for item in part], [(*item.chosen, *item.rejected) for item in part])
        scores += [[-np.inf if each is None else each for each in group] for group in found]
        on_part(len(scores))
    right: list[float] = []
    styles: dict[str, list[float]] = {"easy": [], "normal": [], "hard": []}
    for item, group in zip(benchmark.items, scores, strict=True):
        chosen, rejected = np.array(group[: len(item.chosen)]), np.array(group[len(item.chosen) :])
        wins = (chosen[:, None] > rejected[None, :]) + 0.5 * (chosen[:, None] == rejected[None, :])
        if item.by_style:
            right.append(float(wins.mean()))
            above, below = np.triu_indices(_STYLES, 1), np.tril_indices(_STYLES, -1)
            for name, pairs in (("easy", wins[below]), ("normal", np.diag(wins)), ("hard", wins[above])):
                styles[name].append(float(pairs.mean()))
        else:
            right.append(float(wins.min()))
    return Scored(np.array(right), {name: np.array(each) for name, each in styles.items() if each}, scores)


def _item(row: Json) -> Item:
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    if "response_A" in row and "response_B" in row:
        return _judge_bench(row)
    if "chosen" not in row or "rejected" not in row:
        raise RowError(f"has no known form: its keys are {', '.join(sorted(row)[:8]) or 'none'}")
    prompt = turns_of("prompt", row.get("prompt"), row.get("tools"))
    chosen, rejected = (_answers(name, row[name], prompt) for name in ("chosen", "rejected"))
    by_style = "domain" in row and len(chosen) == len(rejected) == _STYLES
    subset = row.get("domain") if by_style else row.get("subset")
    return Item("all" if subset is None else text_of("subset", subset), prompt, chosen, rejected, by_style)


def _judge_bench(row: Row) -> Item:
    texts = [text_of(name, row[name]) for name in ("response_A", "response_B")]
    label = row.get("label")
    if label not in ("A>B", "B>A"):
        raise RowError(f"label: is {label!r}, not 'A>B' or 'B>A'")
    better = 0 if label == "A>B" else 1
    prompt = turns_of("question", row.get("question"))
    return Item(text_of("source", row.get("source", "all")), prompt, (texts[better],), (texts[1 - better],))


def _answers(field: str, value: Json, prompt: Prompt) -> tuple[str, ...]:
    """The answers of a field: one text, a list of texts, or the assistant's turn in a list of messages."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return tuple(text_of(f"{field}[{i}]", each) for i, each in enumerate(value))
    return (completion_of(field, value, prompt),)
