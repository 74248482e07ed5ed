"""Finds ports that a deployment needs and cannot have, before anything starts."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from rewardloop_local.plan import DeploymentPlan

_LOOPBACK = "127.0.0.1"
_LOWEST = 10_240  # below lie the ports that well-known services listen on
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_OUTGOING_FROM = 32_768  # where the kernel does not say


def port_problems(plan: DeploymentPlan) -> list[str]:
    """One line for each port that is in use or that the plan names twice; empty if all are free."""
    found = []
    owners: dict[tuple[str, int], str] = {}
    for flag, host, port in _ports(plan):
        if port == 0:
            continue
        if (other := owners.setdefault((host, port), flag)) != flag:
            found.append(f"port {port} is given to {other} and to {flag}")
        elif (problem := _problem(host, port)) is not None:
            found.append(f"port {port} ({flag}) {problem}")
    return found


def free_port() -> int:
    """A TCP port on loopback that nothing uses right now and that the kernel gives to no outgoing connection.

    A port that the kernel gives out may be taken before its owner listens or while its owner restarts: by any
    connection, and by that of a client which dials this very port again and again, because it then meets itself.
    """
    for _ in range(100):
        port = _LOWEST + secrets.randbelow(max(_outgoing_from() - _LOWEST, 1))
        if _problem(_LOOPBACK, port) is None:
            return port
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _outgoing_from() -> int:
    try:
        return int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _OUTGOING_FROM


def _ports(plan: DeploymentPlan) -> Iterator[tuple[str, str, int]]:
    """Flag, host and port of everything that listens. An address of another kind than host:port is left out."""
    yield from _address("--listen", plan.listen)
    yield from _address("--gateway-listen", plan.gateway_listen)
    yield "--metrics-port", _LOOPBACK, plan.metrics_port
    yield "--trainer-metrics-port", _LOOPBACK, plan.trainer_metrics_port
    if plan.has_policy():
        yield from _address("--policy-listen", plan.policy_listen)
        yield "--policy-metrics-port", _LOOPBACK, plan.policy_metrics_port


def _address(flag: str, address: str) -> Iterator[tuple[str, str, int]]:
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        yield flag, host.strip("[]"), int(port)


def _problem(host: str, port: int) -> str | None:
    """Why a server could not listen there; None if it can."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that end do not matter
            probe.bind(address)
    except OSError as error:
        return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened on {host}: {error.strerror}"
    return None
