"""The command `health`: whether one process takes requests, as an exit status and one line for probes."""

from __future__ import annotations

from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.metrics_page import MetricsPage, PageUnreachable
from rewardloop_client import RewardloopError

_TIMEOUT_S = 2.0


def run(server: str, service: str, metrics: str | None) -> int:
    """Return 0 if the service is SERVING or the metrics page answers, else 1.

    Raises:
        UsageError: An address stands where the name of a service belongs.
    """
    if ":" in service or "/" in service:
        raise UsageError(f"{service} is no name of a service; an address belongs to --server, a page to --metrics")
    state = _page(metrics) if metrics else _service(server, service)
    print(state)
    return 0 if state in ("SERVING", "UP") else 1


def _service(server: str, service: str) -> str:
    with open_client(server, timeout_s=_TIMEOUT_S, max_attempts=1) as client:
        try:
            return "SERVING" if client.health(service) else "NOT SERVING"
        except RewardloopError as error:
            return error.reason or f"{type(error).__name__}: {error}"


def _page(url: str) -> str:
    try:
        MetricsPage.fetch(url, _TIMEOUT_S)
    except PageUnreachable as error:
        return f"DOWN: {error}"
    return "UP"
