"""What `rewardloop` was given before the command's name, or by the environment, about how to reach the server.

Apart from `connect`, so that `--help` of a command loads nothing.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Given:
    """``token_file`` goes before ``token``."""

    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    token_file: Path | None = None
    token: str = ""


GIVEN: ContextVar[Given | None] = ContextVar("given", default=None)
