"""How much one annotator may say: a bound on what a single voice, honest or not, weighs in what is learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.errors import ReplayedSignal, RewardloopError, TooManySignals

_MINUTE_S, _DAY_S = 60, 86_400


@dataclass(frozen=True, slots=True)
class Check:
    """One bound, kept in Redis under ``key`` for ``ttl_s`` seconds from its last change.

    Without ``member`` a counter of at most ``limit``; with it a set of at most ``limit`` members, each added once.
    """

    name: str
    key: str
    limit: int
    ttl_s: int
    member: str = ""


@dataclass(frozen=True, slots=True)
class Caps:
    """Signals by one annotator, in a minute and in a day by the server's clock, and different ones about one
    generation; 0: no bound. Signals that name no annotator are not counted by time, and are one annotator's about a
    generation. ``generation_ttl_s``: how long a generation can be named."""

    per_minute: int = 0
    per_day: int = 0
    per_generation: int = 0
    generation_ttl_s: int = 7 * _DAY_S

    def checks(self, event: feedback_pb2.FeedbackEvent, now: float) -> tuple[Check, ...]:
        """What is to hold for this event, arrived at ``now`` (Unix seconds)."""
        checks: list[Check] = []
        if event.annotator_id and (self.per_minute or self.per_day):
            who = _hashed(event.annotator_id)
            for name, limit, window_s in (("minute", self.per_minute, _MINUTE_S), ("day", self.per_day, _DAY_S)):
                if limit:
                    key = f"{keys.FEEDBACK_COUNT}{name}:{int(now // window_s)}:{who}"
                    checks.append(Check(name, key, limit, 2 * window_s))
        if event.generation_id and self.per_generation:
            # Separately by source: a judge model and a person may both be nameless.
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
        """What a caller is told. ``refusal``: the name of the check that did not hold, or "replay"."""
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
    """Of what is said, as an integer: Redis keeps a small set of these in 8 bytes each."""
    kind = event.WhichOneof("signal") or ""
    said = getattr(event, kind).SerializeToString(deterministic=True) if kind else b""
    digest = hashlib.blake2b(kind.encode() + b"\0" + said, digest_size=8).digest()
    return str(int.from_bytes(digest, "big", signed=True))
