"""Addresses, and how channels to them are built.

Several IP addresses share one channel, over which gRPC's own round_robin policy spreads calls and skips what is
down; so do the addresses that one name resolves to. Several names get a channel each, and calls rotate over them:
gRPC resolves one name a channel.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import grpc.aio

from rewardloop_client import _calls as calls
from rewardloop_client._retry import THROTTLE_RATIO, THROTTLE_TOKENS, RetryPolicy

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# gRPC takes no more than this from a service config.
MAX_GRPC_ATTEMPTS = 5

_BOOTSTRAPS = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")

Options = tuple[tuple[str, int | str], ...]


class InvalidAddress(ValueError):
    """No address, one that is not host:port, or an xDS name without a bootstrap."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How the servers are reached. The defaults fit a process that talks to a few replicas.

    ``channels``: connections to each address; one carries as many calls at once as the server allows it (gRPC's own
    servers: no bound) but sends and receives in one thread. ``keepalive_s``: a connection with calls in flight is
    pinged after so long without a byte; servers count pings that come sooner than they allow, and hang up after
    three: `rewardloop serve` allows one every 10 s, gRPC's servers one every 300 s. ``keepalive_when_idle``: also
    without calls in flight, for networks that forget silent connections.

    ``retries``: which layer repeats what failed as UNAVAILABLE, or as CANCELLED by a server that goes away. "client":
    this package, which counts attempts, knows reasons and waits no longer than the deadline. "grpc": gRPC, by the
    service config or by what an xDS control plane says. Never both.

    ``skip_unhealthy``: a service such as "rewardloop.v1.RewardService": gRPC watches its health on each replica and
    sends nothing to those where it is not well. Every call of the client is then held back, not only that service's.
    """

    channels: int = 1
    keepalive_s: float = 310.0
    keepalive_timeout_s: float = 10.0
    keepalive_when_idle: bool = False
    retries: Literal["client", "grpc"] = "client"
    skip_unhealthy: str | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError("channels is at least 1")
        for name in ("keepalive_s", "keepalive_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is above 0 and finite")


def targets(addresses: str | Sequence[str], *, apart: bool = False) -> tuple[str, ...]:
    """The gRPC targets to open, one channel each; ``apart``: one for each address, so that it can be chosen.

    ``addresses``: "host:port", "[v6]:port", a target with a scheme ("unix:/run/x.sock", "dns:///name:1",
    "xds:///name"), a comma-separated list of host:port, or a sequence of any of these. Raises InvalidAddress.
    """
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    split = [part.strip() for item in given for part in ([item] if _has_scheme(item) else item.split(","))]
    names = list(dict.fromkeys(name for name in split if name))
    if not names:
        raise InvalidAddress("no address was given")
    families = {_family(name) for name in names}
    if len(names) > 1 and not apart and families in ({"ipv4"}, {"ipv6"}):
        return (f"{families.pop()}:{','.join(names)}",)
    return tuple(names)


def _has_scheme(address: str) -> bool:
    return address.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:"))


def _family(address: str) -> str:
    if address.startswith("xds:") and not any(os.environ.get(name) for name in _BOOTSTRAPS):
        raise InvalidAddress(f"{address} needs {_BOOTSTRAPS[0]}: the file that says where the control plane is")
    if _has_scheme(address):
        return "other"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidAddress(f"{address!r} is not host:port")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "name"


def service_config(
    policy: RetryPolicy, *, retried: Iterable[str] = calls.REPEATABLE, health_service: str | None = None
) -> str:
    """gRPC's service config as JSON: round_robin, throttled retries of ``retried``, health.

    The same numbers as this package's own retries; ``policy.max_attempts`` above 5 counts as 5. Any gRPC client takes
    it, in any language.
    """
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if policy.max_attempts > 1:
        config["methodConfig"] = [
            {
                "name": [_method_name(path) for path in retried],
                "retryPolicy": {
                    "maxAttempts": min(policy.max_attempts, MAX_GRPC_ATTEMPTS),
                    "initialBackoff": f"{policy.first_pause_s:g}s",
                    "maxBackoff": f"{policy.max_pause_s:g}s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
        config["retryThrottling"] = {"maxTokens": THROTTLE_TOKENS, "tokenRatio": THROTTLE_RATIO}
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return json.dumps(config)


def _method_name(path: str) -> dict[str, str]:
    _, service, method = path.split("/")
    return {"service": service, "method": method}


def channel_options(connection: Connection, policy: RetryPolicy) -> Options:
    """What every channel of a client is opened with."""
    # A ScoreStream is repeated by gRPC alone, which still holds what was sent until the first reply comes.
    retried = calls.REPEATABLE if connection.retries == "grpc" else (calls.SCORE_STREAM,)
    config = service_config(policy, retried=retried, health_service=connection.skip_unhealthy)
    return (
        ("grpc.service_config", config),
        # Also what sends a call again, unseen by the config, that a server which goes away had not begun.
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(1000 * connection.keepalive_s)),
        ("grpc.keepalive_timeout_ms", int(1000 * connection.keepalive_timeout_s)),
        # What gRPC goes by where the ping itself stays unanswered; a minute by default.
        ("grpc.http2.ping_timeout_ms", int(1000 * connection.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", int(connection.keepalive_when_idle)),
        # gRPC's default lets the pause between connection attempts grow to two minutes; a restarted server should
        # be found again within the pauses of a call's own retries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A name is asked again when a connection ends; by default not within 30 s of the last time.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Channels with the same options would share their connections.
        ("grpc.use_local_subchannel_pool", int(connection.channels > 1)),
        ("grpc.primary_user_agent", "rewardloop-client"),
    )


OPTIONS = channel_options(Connection(), RetryPolicy())


def intercepted(channel: grpc.Channel, interceptors: Sequence[Any]) -> grpc.Channel:
    return grpc.intercept_channel(channel, *interceptors) if interceptors else channel


def tracing_interceptors() -> list[Any]:
    """OpenTelemetry's packages are not there unless tracing is on."""
    from rewardloop.process.grpc_tracing import ClientTracing

    return [ClientTracing()]


def aio_tracing_interceptors() -> list[grpc.aio.ClientInterceptor]:
    from rewardloop.process.grpc_tracing import aio_interceptors

    return aio_interceptors()
