"""Opens clients and channels to the server with the access options of the command line."""

from __future__ import annotations

from rewardloop_cli.access_options import ACCESS_OPTIONS, AccessOptions
from rewardloop_client import TLS, Access, RewardloopClient
from rewardloop_client._access import Token
from rewardloop_client._types import LaneName


def open_client(
    server: str, *, timeout_s: float = 10.0, max_attempts: int = 4, lane: LaneName = "production"
) -> RewardloopClient:
    """Return a client of ``server`` that uses the access options.

    Raises:
        InvalidAddress: ``server`` is not host:port.
        InvalidAccess: A file of TLS or of the token cannot be used.
    """
    tls, token = _tls_and_token()
    return RewardloopClient(
        server, timeout_s=timeout_s, max_attempts=max_attempts, lane=lane, tls=tls or False, token=token
    )


def channel_access() -> Access:
    """Return the access options for a command that opens gRPC channels itself. Raises InvalidAccess."""
    return Access(*_tls_and_token())


def _tls_and_token() -> tuple[TLS | None, Token | None]:
    options = ACCESS_OPTIONS.get() or AccessOptions()
    tls = TLS.of(options.ca, options.client_cert, options.client_key, options.server_name)
    return tls, options.token_file or options.token or None
