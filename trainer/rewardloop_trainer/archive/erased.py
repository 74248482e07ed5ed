"""What the reader of the stream asks about signals that are erased."""

from __future__ import annotations

from typing import Protocol

from rewardloop.v1 import feedback_pb2


class ErasedSignals(Protocol):
    """Tells which signals are erased, and carries erasures out."""

    def begin(self) -> None:
        """Read which signals are erased, before any is archived."""

    def is_erased(self, event: feedback_pb2.FeedbackEvent) -> bool:
        """Whether a signal is not to be archived."""

    def dropped(self) -> None:
        """Note that a signal was not archived. Raises redis.RedisError."""

    def is_due(self) -> bool:
        """Whether `carry_out` has something to do. It may be asked often."""

    def carry_out(self) -> None:
        """Carry out what is due. Everything that was read from the stream must be archived and acknowledged."""


class NothingErased:
    """The erased signals of a ledger that nobody erases from."""

    def begin(self) -> None:
        pass

    def is_erased(self, event: feedback_pb2.FeedbackEvent) -> bool:
        return False

    def dropped(self) -> None:
        pass

    def is_due(self) -> bool:
        return False

    def carry_out(self) -> None:
        pass
