"""Times, shares and states in words, as templates show them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

_OUTCOMES = {
    "": "under way",
    "promoted": "promoted",
    "refused": "refused",
    "skipped": "failed",
    "given_up": "given up",
}
# The figures of gates that a row of a table has room for, the first that there is of each.
_HEADLINES = (
    ("gate_candidate_accuracy", "agrees with people in {:.1%} (accuracy)"),
    ("gate_win_rate", "its answers win {:.1%}"),
    ("live_win_rate", "with users its answers win {:.1%}"),
    ("gate_gain", "{:+.4f} better fit to each signal (nats)"),
    ("gate_kl", "moved away from its start by {:.2f} nats (KL)"),
)


def when(stamp: Timestamp) -> str:
    """Return a time in UTC, to the minute."""
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M UTC")


def ago(stamp: Timestamp, now: datetime | None = None) -> str:
    """Return how long ago a time was."""
    seconds = ((now or datetime.now(UTC)) - stamp.ToDatetime(tzinfo=UTC)).total_seconds()
    return f"{duration(max(0.0, seconds))} ago"


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3_600, 48)):
        if seconds < size * most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def percent(share: float) -> str:
    """Return a share; small ones have a digit after the point."""
    return f"{share:.1%}" if abs(share) < 0.1 else f"{share:.0%}"


def outcome(word: str) -> str:
    """Return how a round ended, in words."""
    return _OUTCOMES.get(word, word)


def headline(figures: Mapping[str, float]) -> str:
    """Return the figures of a gate that say most, or "" without any."""
    return ", ".join(text.format(figures[name]) for name, text in _HEADLINES if name in figures)
