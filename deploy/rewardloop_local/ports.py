"""Finds ports that a deployment needs and cannot have, before anything starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from rewardloop_local.plan import DeploymentPlan

_LOOPBACK = "127.0.0.1"


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
    """A TCP port on loopback that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


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
