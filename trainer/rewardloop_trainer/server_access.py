"""The connection of a training process to the services."""

from __future__ import annotations

from rewardloop.process.settings import ServerAccess
from rewardloop_client import TLS, RewardloopClient
from rewardloop_client._types import LaneName


def connect(
    settings: ServerAccess, address: str, lane: LaneName = "production", *, tracing: bool = False
) -> RewardloopClient:
    """Raises InvalidAddress and InvalidAccess."""
    tls = TLS.of(settings.ca, settings.client_cert, settings.client_key, settings.server_name)
    token = settings.token_to_show()
    return RewardloopClient(address, lane=lane, tracing=tracing, tls=tls or False, token=token)
