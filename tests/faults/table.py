"""A fault, and what is asked of the world while and after it is injected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from faults.world import World

# What a caller may be told while a part is away; it is never a deadline that ran out, nor INTERNAL.
AWAY = frozenset({"REDIS_UNAVAILABLE"})
# What gRPC itself says of a server that is killed, stopped, or behind a cut cable.
GONE = frozenset({"UNAVAILABLE", "DRAINING", "NO_MODEL"})


@dataclass(frozen=True)
class Fault:
    """``inject`` does the harm and ends it. ``scoring``, ``feedback``: refusals that callers may see meanwhile."""

    name: str
    inject: Callable[[World], None]
    scoring: frozenset[str] = frozenset()
    feedback: frozenset[str] = AWAY


@dataclass(frozen=True)
class Row:
    """What became of it. ``lost``, ``doubled``: acknowledged signals; ``wrong``: scores by a version not to serve."""

    name: str
    saw: str
    lost: int
    doubled: int
    wrong: int
    seconds: float
    unexpected: tuple[str, ...] = field(default=())

    @property
    def is_well(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.unexpected)

    def __str__(self) -> str:
        return f"| {self.name} | {self.saw} | {self.lost} | {self.doubled} | {self.wrong} | {self.seconds:.0f} s |"


FAULTS: list[Fault] = []


def fault(
    name: str, *, scoring: frozenset[str] = frozenset(), feedback: frozenset[str] = AWAY
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Put a function into the table."""

    def register(inject: Callable[[World], None]) -> Callable[[World], None]:
        FAULTS.append(Fault(name, inject, scoring, feedback))
        return inject

    return register


def observe(world: World, fault: Fault) -> Row:
    """Inject it under load, wait until all is well again, and count."""
    started = time.monotonic()
    world.callers.look()
    fault.inject(world)
    world.until_well()
    seen = world.callers.look()
    acknowledged, counted = world.counted()
    scoring = {name: n for name, n in seen.scores.items() if name != "answered"}
    feedback = {name: n for name, n in seen.records.items() if name != "acknowledged"}
    unexpected = [f"scoring: {name}" for name in set(scoring) - fault.scoring]
    unexpected += [f"feedback: {name}" for name in set(feedback) - fault.feedback]
    wrong, world.callers.wrong = world.callers.wrong, []
    return Row(
        fault.name,
        f"scoring: {_said(scoring, 'answered', seen.slowest_score_s)}; "
        f"feedback: {_said(feedback, 'acknowledged', seen.slowest_record_s)}",
        lost=sum(event_id not in counted for event_id in acknowledged),
        doubled=sum(times > 1 for times in counted.values()),
        wrong=len(wrong),
        seconds=time.monotonic() - started,
        unexpected=tuple(unexpected + wrong[:3]),
    )


def _said(refusals: dict[str, int], well: str, slowest_s: float) -> str:
    said = ", ".join(f"{name} {n} times" for name, n in sorted(refusals.items()))
    return f"{said or f'all {well}'} (slowest {slowest_s:.1f} s)"
