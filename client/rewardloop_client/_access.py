"""Opens channels with TLS and client certificates, and adds the caller's bearer token to each call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio

from rewardloop.process.secret_files import read_secret
from rewardloop.process.socket_owner import is_loopback

Token: TypeAlias = str | Path | Callable[[], str]
Options: TypeAlias = Sequence[tuple[str, int | str]]
Metadata: TypeAlias = tuple[tuple[str, str], ...] | None

_LOCAL_SCHEMES = ("unix:", "unix-abstract:")


class InvalidAccess(ValueError):
    """Raised for a file of TLS or of the token that cannot be used, and for a token that would be sent in the clear."""


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files of a TLS connection. They are read at the first call, because gRPC cannot change them later.

    Attributes:
        ca: The authorities that must have signed the server's certificate; None for the public ones.
        cert: The certificate that this client shows (mutual TLS).
        key: The private key of ``cert``.
        server_name: The name in the server's certificate, if it differs from the address.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str = ""

    @classmethod
    def of(
        cls, ca: str | Path | None, cert: str | Path | None, key: str | Path | None, server_name: str
    ) -> Self | None:
        """Return the TLS of these settings, or None (no TLS) if none of them is given."""
        return cls(ca, cert, key, server_name) if ca or cert or key or server_name else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's credentials. Raises InvalidAccess for an unreadable file, or a certificate without its key."""
        if (self.cert is None) != (self.key is None):
            raise InvalidAccess("a client certificate and its key come together")
        ca, key, cert = (None if path is None else _content(path) for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


class Access:
    """Opens channels, and returns the metadata that carries the token of each call.

    Args:
        tls: True for the public authorities, or a `TLS`.
        token: The token itself, the `Path` of a file that holds it (read again when it changes), or a function that
            returns it; a function may return "" for calls without a token.
        insecure_token: Send the token without TLS to addresses other than loopback and Unix sockets, too.
    """

    def __init__(
        self, tls: TLS | bool | None = None, token: Token | None = None, *, insecure_token: bool = False
    ) -> None:
        self._tls = TLS() if tls is True else tls or None
        self._insecure_token = insecure_token
        self._is_fixed = not callable(token)  # an empty one is sent, so that the server says that it is wrong
        self._token: Callable[[], str] | None
        if isinstance(token, Path):
            self._token = _TokenFile(token).read
        elif isinstance(token, str):
            self._token = lambda: token
        else:
            self._token = token

    def check(self, targets: Sequence[str]) -> None:
        """Raise InvalidAccess if the token would be sent in the clear to one of ``targets``."""
        if self._token is None or self._tls is not None or self._insecure_token:
            return
        for target in targets:
            if not is_local(target):
                raise InvalidAccess(f"a token is sent to {target} only over TLS: give its certificate authority")

    def open(self, target: str, options: Options) -> grpc.Channel:
        """Return a channel to ``target``. Raises InvalidAccess."""
        self.check([target])
        options = [*options, *_route(target)]
        if self._tls is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, self._tls.credentials(), [*options, *self._names()])

    def open_aio(self, target: str, options: Options, interceptors: Sequence[Any] = ()) -> grpc.aio.Channel:
        """Return an asyncio channel to ``target``. Raises InvalidAccess."""
        self.check([target])
        options = [*options, *_route(target)]
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options, interceptors=list(interceptors))
        return grpc.aio.secure_channel(
            target, self._tls.credentials(), [*options, *self._names()], interceptors=list(interceptors)
        )

    def metadata(self) -> Metadata:
        """Return the metadata of one call. Raises InvalidAccess if the token's file cannot be read."""
        if self._token is None:
            return None
        token = self._token()
        return (("authorization", f"Bearer {token}"),) if token or self._is_fixed else None

    def _names(self) -> list[tuple[str, str]]:
        name = self._tls.server_name if self._tls is not None else ""
        return [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)] if name else []


class _TokenFile:
    """Reads a token from a file. While the file is being replaced, the last token is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def read(self) -> str:
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._token = read_secret(self._path) or self._token
                self._seen = seen
        except OSError as error:
            if not self._token:
                raise InvalidAccess(f"no token in {self._path}: {error.strerror or error}") from None
        if not self._token:
            raise InvalidAccess(f"no token in {self._path}")
        return self._token


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidAccess(f"{path}: {error.strerror}") from error


def _route(target: str) -> list[tuple[str, int]]:
    """Keep calls to this machine away from the proxy that ``http_proxy`` names: it cannot know what listens here."""
    return [("grpc.enable_http_proxy", 0)] if is_local(target) else []


def is_local(target: str) -> bool:
    """Whether every address of a gRPC target is loopback or a Unix socket of this machine."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    rest = target
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        rest = rest.removeprefix(scheme)
    return all(is_loopback(each.rpartition(":")[0].strip("[]")) for each in rest.split(","))
