"""Takes the port that the fronts share, and keeps other services from it."""

from __future__ import annotations

import socket
from contextlib import suppress

_LAST = 65_535


class PortTaken(OSError):
    """Raised when the address cannot be had. The text says why."""


def take_port(address: str) -> tuple[str, list[socket.socket]]:
    """Take an address of the form host:port for several processes.

    The port is bound here and never listened on, so that the system deals no connections out to this process, and no
    other service can have it, whether or not it would share. Only what binds with SO_REUSEPORT and is of the same user
    joins in, as the fronts do.

    Returns:
        The address, with the port that the system chose in place of 0, and the sockets that must stay open.

    Raises:
        PortTaken: Another process has the port, or the address is none of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if not 0 <= int(port) <= _LAST:
            raise ValueError(f"a port is from 0 to {_LAST}")
        found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        with socket.socket(family) as alone:  # it is not shared, so this fails if anybody has the port
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(where)
            where = alone.getsockname()
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with suppress(OSError):  # of another family there may be none
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.bind(where)
    except (OSError, ValueError, OverflowError) as error:
        raise PortTaken(str(error)) from error
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{where[1]}", [holder]
