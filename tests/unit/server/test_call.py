"""Who makes a call, and how long the caller waits."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rewardloop_server.doors.call import CALLER_KEY, call_of
from rewardloop_server.doors.callers import PRESENT, Credential


@dataclass
class Context:
    """The part of gRPC's context that tells about the caller."""

    metadata: Sequence[tuple[str, str]] | None = None
    remaining_s: float | None = None

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def invocation_metadata(self) -> Any:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def caller(context: Context, credential: Credential | None = None) -> str:
    """The caller's name in a context with this credential."""

    def present() -> str:
        PRESENT.set(credential)
        return call_of(context).caller  # type: ignore[arg-type]

    return contextvars.copy_context().run(present)


def test_a_caller_is_the_credentials_else_the_metadatas_else_the_connections() -> None:
    named = Context([("user-agent", "x"), (CALLER_KEY, "says-so")])
    shop = Credential("shop", "key", frozenset(("score",)))
    assert caller(named, shop) == "shop"
    assert caller(named) == "says-so"
    assert caller(Context([("user-agent", "x")])) == "ipv4:127.0.0.1:1"
    assert caller(Context(None)) == "ipv4:127.0.0.1:1"


def test_the_deadline_is_on_the_monotonic_clock() -> None:
    assert call_of(Context()).deadline is None  # type: ignore[arg-type]
    before = time.monotonic()
    deadline = call_of(Context(remaining_s=5.0)).deadline  # type: ignore[arg-type]
    assert deadline == pytest.approx(before + 5.0, abs=1.0)
