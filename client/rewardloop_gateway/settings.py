"""Settings of the HTTP door."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rewardloop.process.settings import ProcessSettings
from rewardloop.process.socket_owner import is_loopback


class GatewaySettings(ProcessSettings):
    """Answers HTTP and JSON by calling the gRPC services: the OpenAI API for the policy, feedback, and scores."""

    basic_settings = (
        *("listen", "server", "cors_origins", "hosts", "tls_cert", "tls_key", "ca", "server_name"),
        *("timeout_s", "generate_timeout_s", "log_format"),
    )
    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = (
        ("listen", "The HTTP side"),
        ("max_connections_per_address", "Connections"),
        ("console", "The web console"),
        ("server", "The gRPC services"),
        ("log_level", "Log"),
    )

    listen: str = Field("127.0.0.1:50080", description="HTTP address (host:port)")
    tls_cert: Path | None = Field(None, description="PEM certificate chain; with it the port speaks HTTPS")
    tls_key: Path | None = Field(None, description="PEM private key of the certificate")
    insecure_listen: bool = Field(
        False, description="listen elsewhere than on loopback without TLS, as behind a proxy that speaks HTTPS"
    )
    own_user: bool = Field(False, description="refuse calls of this machine's other users, root aside; on Linux")
    hosts: list[str] = Field(
        [],
        description="host names by which it is called; others are refused. Default: those of loopback if it listens "
        "there, else all",
    )
    cors_origins: list[str] = Field(
        [], description="origins of pages that may call it from a browser, such as https://shop.example; default: none"
    )
    max_body_kib: int = Field(4096, ge=1, description="most KiB of a request's body")
    max_requests: int = Field(
        1024,
        ge=1,
        description="most requests in work at once; further ones get 503. Twice as many connections and 64 may be open",
    )
    token_requests_per_s: float = Field(
        0.0, ge=0, description="most requests a second with one token; 0: only the quotas of the services"
    )
    publishable_requests_per_s: float = Field(
        2.0, gt=0, description="most requests a second with one publishable token, after ten at once"
    )
    drain_s: float = Field(30.0, gt=0, description="how long requests in flight may take after SIGTERM")

    max_connections_per_address: int = Field(
        0,
        ge=0,
        description="most connections of one address; a new one takes the place of the one that has waited longest for "
        "its client. 0: 32 more than max_requests, as a proxy needs whose address all have",
    )
    head_timeout_s: float = Field(
        10.0, gt=0, description="how long the head of a request, or a TLS handshake, may take"
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="how long a body may take, besides a second for each 16 KiB that have come"
    )
    send_timeout_s: float = Field(30.0, gt=0, description="how long a client may stop reading its answer")

    console: bool = Field(True, description="serve the web console under /console")
    console_idle_min: float = Field(
        60.0, gt=0, description="minutes without a request after which a person is signed out of the console"
    )

    console_url: str = Field("", description="address by which browsers reach the door, such as https://door.example")
    oidc_issuer: str = Field("", description="OpenID Connect issuer by which people sign in to the console")
    oidc_client_id: str = Field("", description="the console's client id at the issuer")
    oidc_client_secret_file: Path | None = Field(None, description="file with its secret; none for a public client")
    oidc_claim: str = Field("groups", description="claim that holds a person's groups")
    oidc_tokens: list[str] = Field(
        [],
        description="a bearer token for each group, as GROUP=FILE; the first group that a person has counts, and the "
        "roles of its token are the person's",
    )

    server: str = Field("127.0.0.1:50051", description="address of the services; several with commas")
    ca: Path | None = Field(None, description="PEM authorities that signed the services' certificate; turns TLS on")
    client_cert: Path | None = Field(
        None, description="PEM certificate to show to the services (mutual TLS); then each request needs a token"
    )
    client_key: Path | None = Field(None, description="PEM private key of that certificate")
    server_name: str = Field("", description="name in the services' certificate, if it differs from the address")
    insecure_token: bool = Field(False, description="pass tokens on without TLS to services elsewhere than on loopback")
    timeout_s: float = Field(10.0, gt=0, description="seconds that scores and feedback may take")
    generate_timeout_s: float = Field(120.0, gt=0, description="seconds that an answer of the policy may take")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @property
    def host(self) -> str:
        """The host of `listen`, an IPv6 address without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `listen`."""
        return int(self.listen.rpartition(":")[2])

    @field_validator("listen")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        """Raises ValueError for another address than host:port."""
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("is not host:port")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        """Raises ValueError for what is no origin. ``*`` would let every page on the web call."""
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or "*" in origin:
                raise ValueError(f"{origin!r} is no origin, such as https://shop.example")
        return value

    @field_validator("oidc_tokens")
    @classmethod
    def _are_groups(cls, value: list[str]) -> list[str]:
        """Raises ValueError for what is not GROUP=FILE."""
        for each in value:
            group, _, path = each.partition("=")
            if not group or not path:
                raise ValueError(f"{each!r} is not GROUP=FILE")
        return value

    @model_validator(mode="after")
    def _has_what_signing_in_needs(self) -> Self:
        if not self.oidc_issuer:
            return self
        for name, address in (("oidc_issuer", self.oidc_issuer), ("console_url", self.console_url)):
            parts = urlsplit(address)
            is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            if not is_safe or not parts.netloc or parts.query or parts.fragment:
                raise ValueError(f"{name} is no https address")
        if not self.oidc_client_id or not self.oidc_tokens:
            raise ValueError("oidc_issuer needs oidc_client_id and oidc_tokens")
        return self

    @model_validator(mode="after")
    def _may_listen(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.own_user and not is_loopback(self.host):
            raise ValueError("own_user needs a listen address on loopback")
        if not is_loopback(self.host) and self.tls_cert is None and not self.insecure_listen:
            raise ValueError(
                "listen is not on loopback, and without TLS everybody on the way can read the tokens: give tls_cert "
                "and tls_key, or insecure_listen if a proxy in front speaks HTTPS"
            )
        return self
