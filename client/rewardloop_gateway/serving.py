"""The composition root of `rewardloop gateway`: builds the app, and serves it with uvicorn until SIGTERM."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import structlog
import uvicorn

from rewardloop.process.secret_files import secret_text
from rewardloop.process.socket_owner import OwnCallers, is_loopback, shows_owners
from rewardloop_client import TLS, AsyncRewardloopClient, InvalidAccess, InvalidAddress
from rewardloop_console.console import console
from rewardloop_console.headers import AsgiApp
from rewardloop_console.options import ConsoleOptions, OidcOptions
from rewardloop_gateway.build import Times, build
from rewardloop_gateway.caller import TOKEN, bearer
from rewardloop_gateway.connections import ConnectionLimits
from rewardloop_gateway.entry import Entry
from rewardloop_gateway.guard import Guard
from rewardloop_gateway.listening import DoorServer
from rewardloop_gateway.rates import Rates
from rewardloop_gateway.settings import GatewaySettings
from rewardloop_gateway.wrapped import wrapped

log = structlog.get_logger()

PROG = "rewardloop gateway"
# Connections beside those of requests in work: room for probes, and for requests that are on their way.
_SPARE = 32
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


async def serve(settings: GatewaySettings) -> int:
    """Run until SIGTERM or SIGINT, then finish what is in flight. Returns the exit status."""
    try:
        client = open_client(settings)
    except (InvalidAccess, InvalidAddress) as error:
        raise SystemExit(f"{PROG}: {error}") from error
    serving = server(settings, client, _listen(settings))
    log.info("listening", address=settings.listen, server=settings.server)
    try:
        await serving.serve()
    finally:
        await client.close()
    log.info("stopped")
    return 0


def open_client(settings: GatewaySettings) -> AsyncRewardloopClient:
    """Return the client that shows the token of the present request. Raises InvalidAccess and InvalidAddress.

    It tries each call once: the caller sees what it would see over gRPC, with the time to try again, and decides.
    """
    tls = TLS.of(settings.ca, settings.client_cert, settings.client_key, settings.server_name)
    return AsyncRewardloopClient(
        settings.server,
        timeout_s=settings.timeout_s,
        max_attempts=1,
        tls=tls or False,
        token=bearer,
        insecure_token=settings.insecure_token,
    )


def server(settings: GatewaySettings, client: AsyncRewardloopClient, listening: socket.socket) -> DoorServer:
    """Return the server that takes the connections of ``listening``. Raises SystemExit as `app` does."""
    config = uvicorn.Config(
        app(settings, client),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_s) or 1,
    )
    return DoorServer(config, listening, limits(settings), own_callers(settings))


def limits(settings: GatewaySettings) -> ConnectionLimits:
    """Return the bounds of connections.

    There are always more than the requests in work, so that a new connection finds one that waits and takes its place.
    """
    return ConnectionLimits(
        most=2 * (settings.max_requests + _SPARE),
        per_address=settings.max_connections_per_address or settings.max_requests + _SPARE,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        send_s=settings.send_timeout_s,
        body_bytes=1024 * settings.max_body_kib,
    )


def own_callers(settings: GatewaySettings) -> OwnCallers | None:
    """Return who may call with own_user. Raises SystemExit where sockets have no known owner."""
    if settings.own_user and not shows_owners():
        raise SystemExit(f"{PROG}: --own-user needs Linux and its /proc, which show whose process a caller is")
    return OwnCallers(settings.port) if settings.own_user else None


def app(settings: GatewaySettings, client: AsyncRewardloopClient) -> AsgiApp:
    """Return the whole app. Raises SystemExit if own_user is asked for where sockets have no known owner."""
    hosts = settings.hosts
    if not hosts and is_loopback(settings.host):
        hosts = [*_LOOPBACK_NAMES, f"[{settings.host}]" if ":" in settings.host else settings.host]
    if settings.oidc_issuer and find_spec("authlib") is None:
        raise SystemExit(f"{PROG}: --oidc-issuer needs Authlib: pip install 'rewardloop[gateway,oidc]'")
    guard = Guard(
        build(client, Times(settings.timeout_s, settings.generate_timeout_s), has_console=settings.console),
        origins=frozenset(settings.cors_origins),
        rates=Rates(settings.token_requests_per_s, settings.publishable_requests_per_s),
        needs_token=settings.client_cert is not None,
    )
    return Entry(
        wrapped(guard, settings.cors_origins),
        console(client, TOKEN, console_options(settings)) if settings.console else None,
        max_body_bytes=1024 * settings.max_body_kib,
        max_requests=settings.max_requests,
        hosts=frozenset(host.lower() for host in hosts),
        own=own_callers(settings),
    )


def console_options(settings: GatewaySettings) -> ConsoleOptions:
    """Return how the console is served."""
    oidc = _oidc(settings) if settings.oidc_issuer else None
    return ConsoleOptions(settings.port, is_loopback(settings.host), 60 * settings.console_idle_min, oidc)


def _oidc(settings: GatewaySettings) -> OidcOptions:
    """Return how people sign in by OpenID Connect. Raises SystemExit if the file of the secret cannot be read."""
    secret = settings.oidc_client_secret_file
    try:
        return OidcOptions(
            issuer=settings.oidc_issuer,
            client_id=settings.oidc_client_id,
            client_secret="" if secret is None else secret_text(secret).strip(),
            url=settings.console_url.rstrip("/"),
            claim=settings.oidc_claim,
            tokens={group: Path(path) for group, _, path in (each.partition("=") for each in settings.oidc_tokens)},
        )
    except OSError as error:
        raise SystemExit(f"{PROG}: cannot read {secret}: {error.strerror or error}") from error


def _listen(settings: GatewaySettings) -> socket.socket:
    """Return the socket, so that a port in use is one line. Raises SystemExit."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SystemExit(f"{PROG}: cannot listen on {settings.listen}: {error.strerror}") from error
