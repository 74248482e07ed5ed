"""Turns the flags of `feedback import` and `feedback convert` into the choices with which a file is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from rewardloop.formats.mixing.names import is_name
from rewardloop_cli.failures import UsageError
from rewardloop_client._types import SourceName
from rewardloop_data.shapes.shape import Choices


def parse_choices(
    *,
    named: str,
    columns: Sequence[str],
    ignored: Sequence[str],
    one_based: bool | None,
    ranks: bool | None,
    scale: str,
    verbatim: bool,
    count_copies: bool,
) -> Choices:
    """Return the choices that the flags make about how a file is read. Raises UsageError."""
    pairs: dict[str, str] = {}
    for column in columns:
        key, equals, path = column.partition("=")
        if not key or not equals or not path:
            raise UsageError(f"--column {column}: is not KEY=PATH")
        pairs[key] = path
    ends: tuple[float, float] | None = None
    if scale:
        low, _, high = scale.partition("..")
        try:
            ends = (float(low), float(high))
        except ValueError:
            raise UsageError(f"--scale {scale}: is not MINIMUM..MAXIMUM") from None
        if not ends[0] < ends[1]:
            raise UsageError(f"--scale {scale}: its minimum is not below its maximum")
    return Choices(
        named,
        pairs,
        frozenset(key for each in ignored for key in each.split(",") if key),
        {None: "", True: "one-based", False: "zero-based"}[one_based],  # type: ignore[arg-type]
        {None: "", True: "ranks", False: "order"}[ranks],  # type: ignore[arg-type]
        ends,
        verbatim,
        count_copies,
    )


def parse_source(name: str) -> SourceName:
    """Return the source of a name. Raises UsageError."""
    if name not in ("human", "llm_judge", "implicit"):
        raise UsageError(f"--source {name}: is not human, llm_judge or implicit")
    return cast(SourceName, name)


def parse_tags(pairs: Sequence[str]) -> Mapping[str, str]:
    """Return the tags of texts of the form ``key=value``. Raises UsageError."""
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--tag {pair}: is not key=value")
        tags[key] = value
    return tags


def parse_aspect(name: str) -> str:
    """Return the name of an aspect, or an empty text. Raises UsageError."""
    if name and not is_name(name):
        raise UsageError(f"--aspect {name}: is no name of a reward model")
    return name
