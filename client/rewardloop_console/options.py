"""How the console is served, and how people sign in to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OidcOptions:
    """How people sign in by OpenID Connect.

    Attributes:
        issuer: The issuer, an https address.
        client_id: The console's id there.
        client_secret: Its secret; empty for a public client.
        url: The address by which browsers reach the HTTP door.
        claim: The claim that holds a person's groups.
        tokens: File of a bearer token by group. The first that the person has counts.
    """

    issuer: str
    client_id: str
    client_secret: str
    url: str
    claim: str
    tokens: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """How the console is served.

    Attributes:
        port: The port on which it is reached.
        is_loopback: It listens on loopback alone, where there is no HTTPS.
        idle_s: Seconds without a request after which a session ends.
        oidc: How people sign in by OpenID Connect; None if they do not.
    """

    port: int
    is_loopback: bool
    idle_s: float
    oidc: OidcOptions | None = None
