"""Decides where a process may listen, and bounds its connections."""

from __future__ import annotations

import ipaddress

from rewardloop_server.doors.own_user import OwnUser
from rewardloop_server.doors.settings import DoorSettings

# A client that pings more often than this, with RPCs or without, is taken for an attacker and disconnected.
_PING_INTERVAL_MS = 10_000
_NEVER_S = 2_000_000.0  # the longest time that fits: gRPC takes milliseconds in 31 bits

_LOCAL_SCHEMES = ("unix:", "unix-abstract:")


def is_local(address: str) -> bool:
    """Return whether only this machine can reach the address: loopback or a Unix socket. A name counts as not local."""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(address: str, settings: DoorSettings) -> str | None:
    """Return why the process must not listen on the address, or None if it may."""
    if settings.own_user and not is_local(address):
        return f"--own-user refuses everybody who is not on this machine, and {address} is not on loopback"
    if settings.own_user and not OwnUser.is_supported():
        return "--own-user needs Linux and its /proc, which show whose process a caller is"
    if is_local(address) or settings.tls_cert is not None:
        return None
    if not settings.insecure_listen:
        return (
            f"{address} is not on loopback, and without TLS everybody on the way can read and change what is sent: "
            "give --tls-cert and --tls-key, or --insecure-listen if something else protects it"
        )
    if settings.callers is not None and not settings.insecure_tokens:
        return (
            f"{address} is not on loopback, and without TLS everybody on the way can read the callers' tokens: "
            "give --tls-cert and --tls-key, or --insecure-tokens if something else protects them"
        )
    return None


def channel_options(
    settings: DoorSettings, max_message_bytes: int, *, shares_port: bool = False
) -> list[tuple[str, int]]:
    """Return the bounds that gRPC itself keeps, in the order in which a connection meets them.

    ``shares_port`` lets other processes of this user listen on the same port. The system deals connections out to them.
    """

    def ms(seconds: float) -> int:
        return max(1, round(seconds * 1000))

    return [
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # From the TCP connection over TLS to the HTTP/2 settings.
        ("grpc.server_handshake_timeout_ms", ms(settings.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", ms(settings.connection_idle_s)),
        ("grpc.max_connection_age_ms", ms(settings.max_connection_age_s or _NEVER_S)),
        ("grpc.max_connection_age_grace_ms", ms(settings.connection_age_grace_s)),
        ("grpc.keepalive_time_ms", ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", ms(settings.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", ms(settings.keepalive_timeout_s)),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        # Bit 0 is "identity": no other encoding is accepted, and gRPC answers UNIMPLEMENTED to it.
        *([] if settings.accept_compression else [("grpc.compression_enabled_algorithms_bitset", 1)]),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]
