"""How a process reaches a server over HTTP, for those that call vLLM and its like. Needs httpx2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from rewardloop.process.socket_owner import is_loopback


def address_of(url: str) -> str:
    """Return a server's host and port for messages, without what the URL may hold beside them."""
    parts = urlsplit(url)
    return f"{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def client_arguments(url: str, *, api_key: str, parallel: int, timeout_s: float | httpx2.Timeout) -> Mapping[str, Any]:
    """Return the arguments of an HTTP client of either kind.

    Args:
        url: The server's base URL.
        api_key: Sent as a bearer token unless it is empty.
        parallel: Most connections.
        timeout_s: Deadline of one reply, in seconds.
    """
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": timeout_s,
        "limits": httpx2.Limits(max_connections=parallel),
        # A proxy of the environment cannot reach what listens on this machine's loopback.
        "trust_env": not is_loopback(urlsplit(url).hostname or ""),
    }


def said(text: str) -> str:
    """Return the text of an error reply, in one line."""
    return " ".join(text.split())[:300]
