"""Bounds on one annotator's signals, so that no single voice, honest or not, outweighs the others in training."""

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
    """The most signals by one annotator; 0 means no bound.

    Signals that name no annotator are not bounded by time. About one generation they count as one annotator's.

    Attributes:
        per_minute: In a minute of the server's clock.
        per_day: In a day of UTC.
        per_generation: Different signals about one generation.
        generation_ttl_s: Seconds for which a generation can be named.
    """

    per_minute: int = 0
    per_day: int = 0
    per_generation: int = 0
    generation_ttl_s: int = 7 * _DAY_S

    def checks(self, event: feedback_pb2.FeedbackEvent, now: float) -> tuple[Check, ...]:
        """Return the bounds that an event must keep which arrived at ``now``, in Unix seconds."""
        checks: list[Check] = []
        if event.annotator_id and (self.per_minute or self.per_day):
            who = _hashed(event.annotator_id)
            for name, limit, window_s in (("minute", self.per_minute, _MINUTE_S), ("day", self.per_day, _DAY_S)):
                if limit:
                    key = f"{keys.FEEDBACK_COUNT}{name}:{int(now // window_s)}:{who}"
                    checks.append(Check(name, key, limit, 2 * window_s))
        if event.generation_id and self.per_generation:
            # By source too, because a judge model and a person may both name no annotator.
            who = _hashed(event.generation_id, event.annotator_id, str(event.source))
            check = Check(
                "generation",
                keys.FEEDBACK_JUDGED + who,
                self.per_generation,
                self.generation_ttl_s,
                _signal_hash(event),
            )
            checks.append(check)
        return tuple(checks)

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
        limit, window_s = (self.per_minute, _MINUTE_S) if refusal == "minute" else (self.per_day, _DAY_S)
        left_ms = int((window_s - now % window_s) * 1000) + 1
        return TooManySignals(f"more than {limit} signals of this annotator in a {refusal}", retry_after_ms=left_ms)


def _hashed(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def _signal_hash(event: feedback_pb2.FeedbackEvent) -> str:
    """Return a hash of the signal as an integer, because Redis keeps a small set of integers in 8 bytes each."""
    kind = event.WhichOneof("signal") or ""
    said = getattr(event, kind).SerializeToString(deterministic=True) if kind else b""
    digest = hashlib.blake2b(kind.encode() + b"\0" + said, digest_size=8).digest()
    return str(int.from_bytes(digest, "big", signed=True))
