"""Turns addresses into gRPC targets, and builds the options of the channels to them.

Several IP addresses share one channel, over which gRPC's round_robin policy spreads the calls and skips servers that
are down. The addresses that one name resolves to share a channel in the same way. Several names get one channel each,
because a gRPC channel resolves a single name, and calls rotate over these channels.
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
from rewardloop_client.operations import calls as operations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# gRPC reads any larger number of attempts in a service config as 5.
MAX_GRPC_ATTEMPTS = 5

# Methods that change nothing when they are called twice.
REPEATABLE = (*calls.REPEATABLE, *operations.REPEATABLE)

_BOOTSTRAPS = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")

Options = tuple[tuple[str, int | str], ...]


class InvalidAddress(ValueError):
    """Raised for an empty list of addresses, for one that is not host:port, and for an xDS name without a bootstrap."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How the servers are reached. The defaults fit a process that talks to a few replicas.

    Attributes:
        channels: Connections to each address. One connection carries as many calls at once as the server allows, but
            sends and receives in one thread.
        keepalive_s: Seconds without a byte after which a connection with calls in flight is pinged. A server closes a
            connection after three pings that come sooner than it allows: `rewardloop serve` allows one every 10 s,
            other gRPC servers allow one every 300 s by default.
        keepalive_timeout_s: Seconds after which a ping without an answer ends the connection.
        keepalive_when_idle: Ping also without calls in flight, for networks that drop silent connections.
        retries: The layer that repeats calls which failed as UNAVAILABLE, or as CANCELLED by a server that shuts
            down. "client" is this package, which knows the server's reasons and keeps to the deadline. "grpc" is gRPC
            itself, by the service config or an xDS control plane. Only one of the two repeats a call.
        skip_unhealthy: A service such as "rewardloop.v1.RewardService". gRPC watches its health on each replica, and
            sends no call of any service to a replica on which it is not serving.
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
    """Return the gRPC targets to open, one channel for each.

    Args:
        addresses: "host:port", "[v6]:port", a target with a scheme ("unix:/run/x.sock", "dns:///name:1",
            "xds:///name"), a comma-separated list of host:port, or a sequence of any of these.
        apart: Give each IP address a target of its own, so that the caller can choose between them.

    Raises:
        InvalidAddress: There is no address, or one is malformed.
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
    policy: RetryPolicy, *, retried: Iterable[str] = REPEATABLE, health_service: str | None = None
) -> str:
    """Return a gRPC service config as JSON, which a gRPC client in any language can use.

    It sets round_robin, throttled retries and the health check, with the numbers of this package's own retries.

    Args:
        policy: Attempts and pauses. More than 5 attempts count as 5, because gRPC allows no more.
        retried: Full paths of the methods that may be repeated.
        health_service: The service whose health decides whether a replica gets calls; None checks no health.
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
    """Return the options that every channel of a client is opened with."""
    # Only gRPC can repeat a ScoreStream: it keeps what was sent until the first reply comes.
    retried = REPEATABLE if connection.retries == "grpc" else (calls.SCORE_STREAM,)
    config = service_config(policy, retried=retried, health_service=connection.skip_unhealthy)
    return (
        ("grpc.service_config", config),
        # This also repeats calls that a server which shuts down had not begun, whatever the service config says.
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(1000 * connection.keepalive_s)),
        ("grpc.keepalive_timeout_ms", int(1000 * connection.keepalive_timeout_s)),
        # gRPC applies this time, a minute by default, to the ping itself.
        ("grpc.http2.ping_timeout_ms", int(1000 * connection.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", int(connection.keepalive_when_idle)),
        # By default the pause between connection attempts grows to two minutes. A restarted server must be found
        # within the pauses of a call's own retries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A name is resolved again when a connection ends, but by default not within 30 s of the last time.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Otherwise channels with the same options share one connection.
        ("grpc.use_local_subchannel_pool", int(connection.channels > 1)),
        ("grpc.primary_user_agent", "rewardloop-client"),
    )


OPTIONS = channel_options(Connection(), RetryPolicy())


def intercepted(channel: grpc.Channel, interceptors: Sequence[Any]) -> grpc.Channel:
    """Return the channel with the interceptors around it, or the channel itself if there are none."""
    return grpc.intercept_channel(channel, *interceptors) if interceptors else channel


def tracing_interceptors() -> list[Any]:
    """Imported here because OpenTelemetry's packages may be missing unless tracing is on."""
    from rewardloop.process.grpc_tracing import ClientTracing

    return [ClientTracing()]


def aio_tracing_interceptors() -> list[grpc.aio.ClientInterceptor]:
    from rewardloop.process.grpc_tracing import aio_interceptors

    return aio_interceptors()
