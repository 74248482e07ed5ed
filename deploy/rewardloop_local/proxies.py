"""Keeps the processes of one machine from calling one another through a proxy."""

from __future__ import annotations

import os

# gRPC reads this variable in small letters only.
_EXEMPT = "no_grpc_proxy"
_LOOPBACK = "localhost,127.0.0.1,::1"


def exempt_loopback() -> None:
    """Let gRPC in this process, and in those that it starts, call loopback addresses directly.

    gRPC obeys ``http_proxy`` for every address that ``no_grpc_proxy``, or else ``no_proxy``, does not name. No proxy
    can reach this machine's loopback addresses.
    """
    named = os.environ.get(_EXEMPT) or os.environ.get("no_proxy")
    os.environ[_EXEMPT] = f"{named},{_LOOPBACK}" if named else _LOOPBACK
