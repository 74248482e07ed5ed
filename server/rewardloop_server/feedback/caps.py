"""Bounds on the signals of one annotator and of one caller, so that no single voice outweighs the others in training.

A caller can invent annotators, but no callers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.errors import ReplayedSignal, RewardloopError, TooManySignals

_MINUTE_S, _DAY_S = 60, 86_400


@dataclass(frozen=True, slots=True)
class Check:
    """One bound, which the script that appends checks in Redis.

    Attributes:
        name: The bound's name in the script's answer.
        key: The Redis key of its counter or set.
        limit: The most that the counter may reach, or the most members of the set.
        ttl_s: Seconds for which the key is kept after its last change.
        member: What to add to the set, which may be added once. Empty if the key is a counter.
    """

    name: str
    key: str
    limit: int
    ttl_s: int
    member: str = ""


@dataclass(frozen=True, slots=True)
class Caps:
    """The most signals by one annotator of a caller, and by one caller; 0 means no bound.

    Annotators of different callers are different ones, whatever their ids. Signals that name no annotator are not
    bounded by time as an annotator's. About one generation they count as one annotator's. Without authentication all
    signals are one caller's.

    Attributes:
        per_minute: Signals of an annotator in a minute of the server's clock.
        per_day: The same, in a day of UTC.
        per_generation: Different signals of an annotator about one generation.
        generation_ttl_s: Seconds for which a generation can be named.
        caller_per_minute: Signals of a caller in a minute of the server's clock.
        caller_per_day: The same, in a day of UTC.
    """

    per_minute: int = 0
    per_day: int = 0
    per_generation: int = 0
    generation_ttl_s: int = 7 * _DAY_S
    caller_per_minute: int = 0
    caller_per_day: int = 0

    def checks(self, event: feedback_pb2.FeedbackEvent, now: float, caller: str = "") -> tuple[Check, ...]:
        """Return the bounds that an event of ``caller`` must keep which arrived at ``now``, in Unix seconds."""
        if not (self._bounds_time or event.generation_id):
            return ()
        checks: list[Check] = []
        if self.caller_per_minute or self.caller_per_day:
            checks += self._in_a_while("caller", keys.hash_of(caller), now)
        if event.annotator_id and (self.per_minute or self.per_day):
            checks += self._in_a_while("annotator", keys.hash_of(event.annotator_id, caller=caller), now)
        if event.generation_id and self.per_generation:
            check = Check(
                "generation",
                keys.judged_key(event.generation_id, event.annotator_id, event.source, caller),
                self.per_generation,
                self.generation_ttl_s,
                _signal_hash(event),
            )
            checks.append(check)
        return tuple(checks)

    @property
    def _bounds_time(self) -> int:
        return self.per_minute or self.per_day or self.caller_per_minute or self.caller_per_day

    def error(self, refusal: str, now: float) -> RewardloopError:
        """Return the error for a refused event.

        Args:
            refusal: The name of the check that does not hold, or "replay".
            now: The present Unix time in seconds, which decides when to retry.
        """
        if refusal == "replay":
            return ReplayedSignal("this annotator has said the same about this generation before")
        if refusal == "generation":
            return ReplayedSignal(f"this annotator has sent {self.per_generation} signals about this generation")
        whose, window = refusal.split("_")
        limit, window_s = self._limits(whose)[window]
        left_ms = int((window_s - now % window_s) * 1000) + 1
        return TooManySignals(f"more than {limit} signals of this {whose} in a {window}", retry_after_ms=left_ms)

    def _limits(self, whose: str) -> dict[str, tuple[int, int]]:
        """Return the most signals of an annotator or a caller in each window, and the window's seconds."""
        if whose == "caller":
            return {"minute": (self.caller_per_minute, _MINUTE_S), "day": (self.caller_per_day, _DAY_S)}
        return {"minute": (self.per_minute, _MINUTE_S), "day": (self.per_day, _DAY_S)}

    def _in_a_while(self, whose: str, who: str, now: float) -> list[Check]:
        """Return the checks of the counters of one annotator or caller."""
        prefix = "caller:" if whose == "caller" else ""
        return [
            Check(
                f"{whose}_{window}",
                f"{keys.FEEDBACK_COUNT}{window}:{int(now // window_s)}:{prefix}{who}",
                limit,
                2 * window_s,
            )
            for window, (limit, window_s) in self._limits(whose).items()
            if limit
        ]


def _signal_hash(event: feedback_pb2.FeedbackEvent) -> str:
    """Return a hash of the signal as an integer, because Redis keeps a small set of integers in 8 bytes each."""
    kind = event.WhichOneof("signal") or ""
    said = getattr(event, kind).SerializeToString(deterministic=True) if kind else b""
    aspect = f"\0{event.aspect}".encode() if event.aspect else b""  # without one it is the hash of earlier versions
    digest = hashlib.blake2b(kind.encode() + b"\0" + said + aspect, digest_size=8).digest()
    return str(int.from_bytes(digest, "big", signed=True))
