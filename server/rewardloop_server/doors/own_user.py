"""Refuses the other users of this machine, who may call whatever listens on loopback."""

from __future__ import annotations

from rewardloop.process.socket_owner import OwnCallers, shows_owners
from rewardloop_server.calls.errors import NotAllowed, RewardloopError


class OwnUser:
    """Refuses callers on this machine that are neither this process's user nor root.

    Callers on a Unix socket pass, because the mode of its folder decides who may call.
    """

    def __init__(self, port: int) -> None:
        self._own = OwnCallers(port)

    @staticmethod
    def is_supported() -> bool:
        """Return whether this machine shows the owners of sockets."""
        return shows_owners()

    def refusal(self, peer: str) -> RewardloopError | None:
        """Return why a caller is turned away, or None if it may go on. ``peer`` is as gRPC writes it."""
        if self._own.has(peer):
            return None
        return NotAllowed("only the user who runs this process may call it (--own-user)")
