"""The options of `rewardloop` that say how to reach the server: given before the command's name, or by the environment.

They are kept apart from `connect`, which imports gRPC, so that `--help` of a command stays fast.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """Files of TLS, and the token to send. ``token_file`` outranks ``token``."""

    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    token_file: Path | None = None
    token: str = ""


ACCESS_OPTIONS: ContextVar[AccessOptions | None] = ContextVar("access_options", default=None)
