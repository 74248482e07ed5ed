"""Settings of the door, which every listening process has."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from rewardloop.process.settings import ProcessSettings


class DoorSettings(ProcessSettings):
    """Transport security, callers, and bounds of connections."""

    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tls_cert", "TLS and callers"),
        ("max_connections", "Connections"),
    )

    tls_cert: Path | None = Field(None, description="PEM certificate chain; with it the gRPC port takes only TLS")
    tls_key: Path | None = Field(None, description="PEM private key of the certificate")
    tls_client_ca: Path | None = Field(
        None, description="PEM authorities that every client's certificate must come from (mutual TLS)"
    )
    callers: Path | None = Field(
        None, description="TOML file of callers: token hashes, certificate names, roles, quotas; none: no check"
    )
    own_user: bool = Field(False, description="refuse calls of this machine's other users, root aside; on Linux")
    audit_file: Path | None = Field(None, description="JSON lines of what admins did, appended; none: only the log")
    insecure_listen: bool = Field(False, description="listen elsewhere than on loopback without TLS")
    insecure_tokens: bool = Field(False, description="take tokens elsewhere than on loopback without TLS")
    reload_s: float = Field(1.0, gt=0, description="how often these files are checked for changes")

    max_connections: int = Field(4096, ge=1, description="most open connections; further ones are closed at once")
    max_streams_per_connection: int = Field(4096, ge=1, description="most RPCs in flight on one connection")
    max_rpcs: int = Field(
        16_384, ge=1, description="most RPCs in flight, including those whose message has not come yet"
    )
    open_calls: int = Field(
        1024, ge=1, description="most calls of health and reflection in flight, which need no credentials"
    )
    open_calls_per_address: int = Field(256, ge=1, description="the same, from one address")
    open_calls_per_connection: int = Field(32, ge=1, description="the same, on one connection")
    accept_compression: bool = Field(
        False, description="take compressed messages, of which a small one may become as large as --max-message-bytes"
    )
    handshake_timeout_s: float = Field(20.0, gt=0, description="how long a connection may take for its handshake")
    connection_idle_s: float = Field(600.0, gt=0, description="how long a connection may live without an RPC")
    max_connection_age_s: float = Field(
        3600.0, ge=0, description="after this long a connection takes no new RPCs; clients open another; 0: never"
    )
    connection_age_grace_s: float = Field(600.0, gt=0, description="and after this much longer it is closed")
    keepalive_s: float = Field(60.0, gt=0, description="how often a silent connection is pinged")
    keepalive_timeout_s: float = Field(20.0, gt=0, description="how long it may take to answer a ping")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self
