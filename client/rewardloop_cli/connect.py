"""How commands reach the server."""

from __future__ import annotations

from rewardloop_cli.access_options import GIVEN, Given
from rewardloop_client import TLS, Access, RewardloopClient
from rewardloop_client._access import Token
from rewardloop_client._types import LaneName


def connect(
    server: str, *, timeout_s: float = 10.0, max_attempts: int = 4, lane: LaneName = "production"
) -> RewardloopClient:
    """Raises InvalidAddress and InvalidAccess."""
    tls, token = _given()
    return RewardloopClient(
        server, timeout_s=timeout_s, max_attempts=max_attempts, lane=lane, tls=tls or False, token=token
    )


def access() -> Access:
    """The same for channels that a command opens itself."""
    return Access(*_given())


def _given() -> tuple[TLS | None, Token | None]:
    given = GIVEN.get() or Given()
    tls = TLS.of(given.ca, given.client_cert, given.client_key, given.server_name)
    return tls, given.token_file or given.token or None
