"""The version that scores and the queue in front of the engine, as scoring sees them.

Both are in this process (`RewardModel`, `Batcher`), or they stand for what the engine's process has (`channel`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from rewardloop.formats.store import Calibration, Manifest
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_server.scoring.lane import Scored


class Version(Protocol):
    """A warm version. It turns texts into rows; the queue with which it was loaded runs them."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def calibration(self) -> Calibration: ...

    @property
    def is_away(self) -> bool:
        """Whether a server elsewhere runs it that is away at present, so that its groups are turned away."""

    def close(self) -> None:
        """Let go of the version. Called once, after the last lease."""


class Batching(Protocol):
    """The queue in front of the engine. `Batcher` describes the arguments and what is raised.

    A model that is given to it must come from the same loader as the queue itself.
    """

    @property
    def is_stuck(self) -> bool:
        """Whether the queue turns every group away."""

    def reserved(
        self,
        lane: str,
        tokens: int,
        deadline: float | None,
        caller: str,
        *,
        account: str | None = None,
        is_bounded: bool = True,
    ) -> AbstractContextManager[Awaitable[None] | None]:
        """Reserve room for a group while the block lasts.

        The block must await what it is given before it does any work: that raises the refusal, if there is one. Given
        None, it has the room already.
        """

    def has_bulk_room(self, lane: str) -> bool:
        """Return whether a bulk call that has groups in flight may add another to the lane."""

    def set_gauges(self) -> None:
        """Set the lanes' gauges."""

    async def score(
        self,
        model: Any,
        rows: Sequence[Encoded],
        lane: str,
        deadline: float | None,
        caller: str = "",
        *,
        account: str | None = None,
    ) -> Scored:
        """Queue one group and wait for all of its rows."""

    async def score_shadow(self, model: Any, rows: Sequence[Encoded]) -> Scored | None:
        """Score a group in the shadow lane. Returns None, and counts the group as dropped, if that lane is full."""

    async def run(self) -> None:
        """Work until cancelled."""
