"""What the gRPC servers of both serving processes allow a connection."""

from __future__ import annotations

# Pings that clients may send without being hung up on, idle or not: load balancers forget silent connections within
# minutes. gRPC's default is 5 minutes, and none while idle.
_PING_INTERVAL_MS = 10_000


def server_options(
    max_message_bytes: int, max_connection_age_s: float, drain_grace_s: float
) -> tuple[tuple[str, int], ...]:
    """Options of `grpc.aio.server`.

    A connection of age ``max_connection_age_s`` (0: any) is asked to end: its calls in flight may finish within
    ``drain_grace_s``, new ones open another, for which a name is resolved anew. gRPC varies the age by a tenth.
    """
    options = (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    )
    if not max_connection_age_s:
        return options
    return (
        *options,
        ("grpc.max_connection_age_ms", int(1000 * max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", int(1000 * drain_grace_s)),
    )
