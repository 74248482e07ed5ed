"""Counts the open connections of the HTTP door, by whose they are, and makes room for new ones.

A connection that waits for its client costs the client nothing. So if there are too many, a new one takes the place of
the one that has waited longest, among those of whoever holds the most. Connections whose request is being answered are
never hung up for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

# Whose connections are another user's of this machine. They are told so, and hold no more than a few at once.
STRANGERS = "strangers"
MOST_STRANGERS = 16
_SITE_BITS = 64  # of an IPv6 address; one machine has all addresses behind them


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of connections.

    Attributes:
        most: Most connections in all.
        per_address: Most connections of one IPv4 address, or of one IPv6 network of 64 bits.
        head_s: Seconds within which the head of a request must come, and a TLS handshake end.
        body_s: Seconds within which a body must come, besides what it takes at the least rate.
        send_s: Seconds within which a client must read on from an answer.
        body_bytes: Most bytes of a body.
    """

    most: int
    per_address: int
    head_s: float
    body_s: float
    send_s: float
    body_bytes: int


class Connection:
    """An accepted connection.

    Attributes:
        holder: Whose it is: an address, or `STRANGERS`.
        socket: Its socket, which its transport closes.
        transport: Its transport, once there is one.
        waiting_since: When it began to wait for its client; None if it does not.
    """

    __slots__ = ("holder", "socket", "transport", "waiting_since")

    def __init__(self, holder: str, sock: socket.socket, now: float) -> None:
        self.holder = holder
        self.socket = sock
        self.transport: asyncio.Transport | None = None
        self.waiting_since: float | None = now

    def hang_up(self) -> None:
        """End the connection at once, whatever is left to send."""
        if self.transport is not None:
            self.transport.abort()
            return
        with contextlib.suppress(OSError):  # it is closed already
            self.socket.shutdown(socket.SHUT_RDWR)  # the TLS handshake on it fails


class Connections:
    """The open connections. One event loop uses it.

    Attributes:
        refused: How many connections found no room.
        displaced: How many were hung up for a new one.
    """

    def __init__(self, limits: ConnectionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._open: dict[Connection, None] = {}
        self._held: Counter[str] = Counter()
        self.refused = 0
        self.displaced = 0

    def admit(self, holder: str, sock: socket.socket) -> Connection | None:
        """Count a new connection in, if need be in the place of one that waits. Returns None if there is no room."""
        most = MOST_STRANGERS if holder == STRANGERS else self._limits.per_address
        has_room = self._held[holder] < most or self.make_room(holder)
        if not has_room or (len(self._open) >= self._limits.most and not self.make_room()):
            self.refused += 1
            return None
        connection = Connection(holder, sock, self._clock())
        self._open[connection] = None
        self._held[holder] += 1
        return connection

    def leave(self, connection: Connection) -> None:
        """Count a connection out. A second time changes nothing."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._held[connection.holder] -= 1
        if not self._held[connection.holder]:
            del self._held[connection.holder]

    def make_room(self, holder: str = "") -> bool:
        """Hang up the connection that has waited longest, of this holder or of whoever has most that wait.

        Returns whether there was one.
        """
        waiting = [(each.waiting_since, each) for each in self._open if each.waiting_since is not None]
        if not holder and waiting:
            holder = Counter(each.holder for _, each in waiting).most_common(1)[0][0]
        theirs = [(since, each) for since, each in waiting if each.holder == holder]
        if not theirs:
            return False
        _, longest = min(theirs, key=lambda pair: pair[0])
        self.leave(longest)
        longest.hang_up()
        self.displaced += 1
        return True

    def __len__(self) -> int:
        return len(self._open)


def holder_of(host: str) -> str:
    """Return who holds a connection from an IP address: the address, or the network of an IPv6 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _SITE_BITS), strict=False))
