"""TLS and tokens of a deployment: gives each of its processes the flags with which they authenticate one another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from rewardloop.process.settings import ProcessSettings

if TYPE_CHECKING:
    from rewardloop_client import AsyncRewardloopClient

_DOOR = ("tls_cert", "tls_key", "tls_client_ca", "callers", "audit_file")
_ACCESS = ("ca", "client_cert", "client_key", "server_name", "token_file")


class SecuritySettings(ProcessSettings):
    """The TLS and the callers of the services, and the credentials with which their processes call one another."""

    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = (
        ("tls_cert", "TLS and callers of the services"),
        ("ca", "How the processes call one another"),
    )

    tls_cert: Path | None = Field(None, description="PEM certificate chain of the services, whose ports then speak TLS")
    tls_key: Path | None = Field(None, description="PEM private key of the certificate")
    tls_client_ca: Path | None = Field(None, description="PEM authorities that sign clients' certificates (mutual TLS)")
    callers: Path | None = Field(None, description="TOML file of callers: token hashes, certificates, roles, quotas")
    any_user: bool = Field(False, description="let other users of this machine call what listens on loopback")
    audit_file: Path | None = Field(None, description="file to which calls of admins are appended as JSON lines")
    ca: Path | None = Field(None, description="PEM authorities of that certificate, for calls between processes")
    client_cert: Path | None = Field(None, description="PEM certificate that the processes show one another")
    client_key: Path | None = Field(None, description="PEM private key of that certificate")
    server_name: str = Field("", description="name in the services' certificate, if it differs from their address")
    token_file: Path | None = Field(
        None, description="file with the token that the processes show; its roles are score, generate and admin"
    )

    @model_validator(mode="after")
    def _processes_are_let_in(self) -> Self:
        if self.tls_cert is not None and self.ca is None:
            raise ValueError("tls_cert needs ca, by which the trainer recognises the services")
        if self.callers is not None and self.token_file is None and self.client_cert is None:
            raise ValueError("callers needs token_file or client_cert, by which the services recognise the trainer")
        return self


@dataclass(frozen=True, slots=True)
class Security:
    """The values of `SecuritySettings`; all are absent by default."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    callers: Path | None = None
    any_user: bool = False
    audit_file: Path | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    token_file: Path | None = None

    @classmethod
    def of(cls, settings: SecuritySettings) -> Self:
        """Take the values from settings."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(cls)})

    def door_args(self, address: str) -> list[str]:
        """Flags for a process that listens on the address. Without callers it is for this user alone, if it can be."""
        # Imported here: `--help` and `config show` need no gRPC.
        from rewardloop_server.doors.listen import is_local
        from rewardloop_server.doors.own_user import OwnUser

        is_guarded = self.any_user or self.callers is not None or self.tls_client_ca is not None
        is_own = not is_guarded and is_local(address) and OwnUser.is_supported()
        return [*self._args(_DOOR), *(["--own-user"] if is_own else [])]

    def gateway_args(self, address: str) -> list[str]:
        """Flags for the HTTP door, which shows its callers' tokens and has none of its own.

        It has the certificate that the processes show one another only if the services let nobody in without one.
        """
        from rewardloop_server.doors.listen import is_local  # as above

        is_own = "--own-user" in self.door_args(address)
        https = () if is_local(address) else ("tls_cert", "tls_key")
        mutual = ("client_cert", "client_key") if self.tls_client_ca is not None else ()
        return [*self._args((*https, "ca", *mutual, "server_name")), *(["--own-user"] if is_own else [])]

    def access_args(self, prefix: str = "") -> list[str]:
        """Flags for the processes that call them, each with ``prefix`` before its name."""
        return self._args(_ACCESS, prefix)

    def client(self, address: str, timeout_s: float) -> AsyncRewardloopClient:
        """A client with the processes' credentials."""
        # Imported here: `--help` and `config show` need no gRPC.
        from rewardloop_client import TLS, AsyncRewardloopClient

        tls = TLS.of(self.ca, self.client_cert, self.client_key, self.server_name)
        return AsyncRewardloopClient(address, timeout_s=timeout_s, tls=tls or False, token=self.token_file)

    def _args(self, names: tuple[str, ...], prefix: str = "") -> list[str]:
        given = [(name, getattr(self, name)) for name in names]
        pairs = [(f"--{prefix}{name.replace('_', '-')}", str(value)) for name, value in given if value]
        return [part for pair in pairs for part in pair]
