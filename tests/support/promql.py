"""Reads selectors and label names out of PromQL, as far as the dashboard, the alerts and the runbook use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_SELECTOR = re.compile(
    r"\b((?:rewardloop|process|python)_[a-z0-9_]*[a-z0-9]|rewardloop:[a-z0-9_:]+|ALERTS|up)\b(?!_)\s*(\{[^{}]*\})?"
)
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([\w\s,]*)\)")
_TEMPLATE = re.compile(r"\{\{\s*\$labels\.(\w+)|\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on one label, such as ``code!~"OK|CANCELLED"``."""

    label: str
    operator: str
    text: str

    def alternatives(self) -> list[str]:
        """The values, or the patterns of values, that the matcher names."""
        return self.text.split("|") if self.operator.endswith("~") else [self.text]

    def names_only(self, values: frozenset[str]) -> bool:
        """Whether each of the alternatives is one of these values, or a pattern that matches one of them."""
        if self.operator.endswith("~"):
            return all(any(re.fullmatch(each, value) for value in values) for each in self.alternatives())
        return self.text in values


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric with its matchers; the name may end in ``_bucket``, ``_sum`` or ``_count``."""

    metric: str
    matchers: tuple[Matcher, ...]


def selectors(text: str) -> Iterator[Selector]:
    """Every selector of a text, which may be prose with metrics in it."""
    for metric, braces in _SELECTOR.findall(text):
        yield Selector(metric, tuple(Matcher(*found) for found in _MATCHER.findall(braces)))


def grouping_labels(expression: str) -> set[str]:
    """The labels by which an expression groups or joins."""
    return {label.strip() for found in _GROUPING.findall(expression) for label in found.split(",") if label.strip()}


def template_labels(text: str) -> set[str]:
    """The labels that an annotation (``{{ $labels.model }}``) or a legend (``{{model}}``) shows."""
    return {one or other for one, other in _TEMPLATE.findall(text)} - {"end"}  # of {{ with }}
