"""Tells whose process is at the other end of a loopback connection.

A port on loopback has no file mode, so that each user of the machine may call what listens there. Linux shows the owner
of every socket in /proc/net/tcp and tcp6.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections import OrderedDict
from pathlib import Path
from urllib.parse import unquote

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

# Sockets that close or wait have no owner, and Linux shows root in its place.
_ESTABLISHED = "01"
_STATE, _OWNER = 3, 7  # columns of the tables
_WORD = 8  # digits
# A connection's owner stays, but its port may be another user's a while after it was closed.
_REMEMBERED_S = 5.0
_MOST_REMEMBERED = 4096
_ROOT = 0


class OwnCallers:
    """Tells this process's own user, and root, from the other users of the machine. ``port`` is where it listens."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._uid = os.getuid()
        self._known: OrderedDict[str, tuple[float, bool]] = OrderedDict()

    def has(self, peer: str) -> bool:
        """Return whether the process at the other end may call. ``peer`` is as gRPC writes it.

        Callers on a Unix socket may, because the mode of its folder decides who calls.
        """
        if peer.startswith("unix"):
            return True
        now = time.monotonic()
        known = self._known.get(peer)
        if known is None or known[0] < now:
            known = now + _REMEMBERED_S, owner_of(peer, self._port) in (self._uid, _ROOT)
            self._known[peer] = known
            self._known.move_to_end(peer)
            if len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
        return known[1]


def peer_at(host: str, port: int) -> str:
    """Return the other end of a connection as gRPC writes it: ``ipv4:127.0.0.1:40000``."""
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host, by name or IP address, is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shows_owners() -> bool:
    """Return whether this machine shows the owners of sockets."""
    return sys.platform == "linux" and TABLES[0].exists()


def owner_of(peer: str, port: int) -> int | None:
    """Return the user id of the process that is connected from ``peer`` to ``port``, or None if there is none.

    Args:
        peer: The other end, as gRPC writes it: ``ipv4:127.0.0.1:40000``.
        port: This end.
    """
    family, _, rest = unquote(peer).partition(":")
    host, _, their_port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    ours, theirs = f":{port:04X}", f":{int(their_port):04X}"
    wanted = {f"{each}{theirs}" for each in _written(address)}
    for table in TABLES:
        if not table.exists():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            row = line.split()
            if row[1] in wanted and row[2].endswith(ours) and row[_STATE] == _ESTABLISHED:
                return int(row[_OWNER])
    return None


def _written(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[str]:
    """Return how the tables write an address: words in the machine's order of bytes. IPv4 may stand in IPv6."""
    forms = [address.packed]
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else address
    if mapped is not None:
        forms = [mapped.packed, ipaddress.ip_address(f"::ffff:{mapped}").packed]
    return [
        "".join(f"{int.from_bytes(form[i : i + 4], sys.byteorder):0{_WORD}X}" for i in range(0, len(form), 4))
        for form in forms
    ]
