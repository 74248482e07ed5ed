"""Connects a training process to the services."""

from __future__ import annotations

from rewardloop.process.settings import ServerAccess
from rewardloop_client import TLS, RewardloopClient
from rewardloop_client._types import LaneName


def open_client(
    settings: ServerAccess, address: str, lane: LaneName = "production", *, tracing: bool = False
) -> RewardloopClient:
    """Return a client of the services at ``address`` with the certificates and token of the settings.

    Raises:
        InvalidAddress: If the address is none.
        InvalidAccess: If the certificates or the token cannot be used.
    """
    tls = TLS.of(settings.ca, settings.client_cert, settings.client_key, settings.server_name)
    token = settings.token_to_show()
    return RewardloopClient(address, lane=lane, tracing=tracing, tls=tls or False, token=token)
