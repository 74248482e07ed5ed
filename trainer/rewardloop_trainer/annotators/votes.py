"""What people said as arrays: votes of who called which of two responses the better one, and grades of one response.

A vote's item is a prompt with two responses in the order of their texts, so that it does not depend on who won. A
grade's item is a prompt with the response that was judged on its own, by a thumb or a rating.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.data.preferences import (
    Labelled,
    Pair,
    Prompt,
    RankedList,
    Record,
    TiedPair,
    comparisons_in,
    pairs_of,
)

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Item: TypeAlias = tuple[Prompt, str, str]

FIRST, SECOND, TIE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Votes:
    """n votes of p people on m items.

    Attributes:
        people: The people's names, p.
        items: What was voted on, m; any values that identify them.
        person: (n,), the place of each vote's person among the people.
        item: (n,), the place of its item.
        choice: (n,), `FIRST`, `SECOND` or `TIE`: which response of the item is the better one.
        weight: (n,), what the vote counts. A choice counts 1, and the C(k, 2) votes of a ranking count as
            `comparisons_in` says together, because they are not independent.
        slices: The tags of each vote as key=value, n.
    """

    people: tuple[str, ...]
    items: tuple[Any, ...]
    person: Ints
    item: Ints
    choice: Ints
    weight: Floats
    slices: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.choice)

    def where(self, kept: npt.NDArray[np.bool_]) -> Votes:
        """Return some of the votes, with the same people and items."""
        slices = tuple(s for s, is_kept in zip(self.slices, kept, strict=True) if is_kept) if self.slices else ()
        return Votes(
            self.people,
            self.items,
            self.person[kept],
            self.item[kept],
            self.choice[kept],
            self.weight[kept],
            slices,
        )

    @property
    def strict(self) -> Votes:
        """The votes that are no ties."""
        return self.where(self.choice != TIE)

    @property
    def is_last(self) -> npt.NDArray[np.bool_]:
        """(n,), whether a vote is its person's last one on its item: who is asked again may have changed their mind."""
        return _is_last(self.person, self.item)


@dataclass(frozen=True, slots=True)
class Grades:
    """n grades that people gave to responses on their own.

    Attributes:
        person: (n,), the number of each grade's person.
        item: (n,), the number of the prompt and response that were graded.
        value: (n,), from 0 (worst) to 1: 0 or 1 for a thumb, and a rating mapped from its scale.
    """

    person: Ints
    item: Ints
    value: Floats

    def __len__(self) -> int:
        return len(self.value)

    @property
    def is_last(self) -> npt.NDArray[np.bool_]:
        """(n,), as of `Votes`."""
        return _is_last(self.person, self.item)


def _is_last(person: Ints, item: Ints) -> npt.NDArray[np.bool_]:
    _, last = np.unique(np.stack([person, item])[:, ::-1], axis=1, return_index=True)
    found = np.zeros(len(item), dtype=bool)
    found[len(item) - 1 - last] = True
    return found


def make_votes(
    rows: Sequence[tuple[str, Any, int]],
    weights: Sequence[float] | None = None,
    slices: Sequence[tuple[str, ...]] = (),
) -> Votes:
    """Number the people and items of rows (person, item, choice), in the order in which they come."""
    people: dict[str, int] = {}
    items: dict[Any, int] = {}
    person = [people.setdefault(name, len(people)) for name, _, _ in rows]
    item = [items.setdefault(what, len(items)) for _, what, _ in rows]
    return Votes(
        tuple(people),
        tuple(items),
        np.asarray(person, dtype=np.int64),
        np.asarray(item, dtype=np.int64),
        np.asarray([choice for _, _, choice in rows], dtype=np.int64),
        np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64),
        tuple(slices),
    )


def votes_of(records: Iterable[Record]) -> tuple[Votes, Ints]:
    """Return the votes in the comparisons of named people, and the place of each one's record.

    Left out are signals without a person, responses that were judged on their own, which are `grades_of`, and edits'
    pairs alike: nobody else judges a text that one person wrote, unless it is shown again.
    """
    rows: list[tuple[str, Any, int]] = []
    weights: list[float] = []
    slices: list[tuple[str, ...]] = []
    places: list[int] = []

    def add(place: int, record: Record, item: Item, choice: int, weight: float) -> None:
        rows.append((record.annotator, item, choice))
        weights.append(weight)
        slices.append(slices_of(record))
        places.append(place)

    for place, record in enumerate(records):
        if not record.annotator:
            continue
        match record:
            case TiedPair():
                add(place, record, item_of(record.prompt, record.first, record.second), TIE, 1.0)
            case Pair() | RankedList():
                pairs = pairs_of([record])
                weight = comparisons_in(len(record.responses)) / len(pairs) if isinstance(record, RankedList) else 1.0
                for pair in pairs:
                    item = item_of(pair.prompt, pair.chosen, pair.rejected)
                    add(place, record, item, FIRST if item[1] == pair.chosen else SECOND, weight)
    return make_votes(rows, weights, slices), np.asarray(places, dtype=np.int64)


def grades_of(records: Iterable[Record]) -> Grades:
    """Return the grades that named people gave, in the order in which they come."""
    people: dict[str, int] = {}
    items: dict[tuple[Prompt, str], int] = {}
    rows = [
        (
            people.setdefault(record.annotator, len(people)),
            items.setdefault((record.prompt, record.response), len(items)),
            record.label,
        )
        for record in records
        if isinstance(record, Labelled) and record.annotator and record.source == "human"
    ]
    return Grades(
        np.asarray([person for person, _, _ in rows], dtype=np.int64),
        np.asarray([item for _, item, _ in rows], dtype=np.int64),
        np.asarray([value for _, _, value in rows], dtype=np.float64),
    )


def item_of(prompt: Prompt, one: str, other: str) -> Item:
    """Return the item of two responses: the same one in whatever order they are named."""
    return (prompt, one, other) if one <= other else (prompt, other, one)


def slices_of(record: Record) -> tuple[str, ...]:
    """Return the tags of a record as key=value, sorted."""
    return tuple(f"{key}={value}" for key, value in sorted(record.tags.items()))
