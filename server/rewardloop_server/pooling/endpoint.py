"""Calls of one pooling server over HTTP: which models it serves, and their outputs for token ids. Needs httpx2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import structlog

from rewardloop.process.http_servers import address_of, client_arguments, said
from rewardloop_server.pooling.dialects import Dialect, Pooled
from rewardloop_server.pooling.idle_connection import IdleConnection
from rewardloop_server.scoring.engine import OutOfMemory

log = structlog.get_logger()

_MODELS = "/v1/models"
_CONNECT_S = 5.0
_PARALLEL = 64
_OUT_OF_MEMORY = "out of memory"
# Statuses that say that the server, or the model there, is not to be had: no key or a wrong one, no such model or path,
# too much to do, not ready. Any other status 4xx is about the rows, and any other 5xx may be.
_NOT_OF_ROWS = (401, 403, 404, 408, 429, 503)


class PoolingUnreachable(Exception):
    """Raised when a server gives no usable reply, whichever rows it is sent."""


class PoolingFailed(Exception):
    """Raised when a server fails on a call: the rows or the server may be at fault. Its own words are in the log."""


class PoolingRefused(Exception):
    """Raised when a server refuses the rows that it was sent. Its own words are in the log."""


class PoolingEndpoint:
    """One server. Its calls are coroutines of one event loop.

    Args:
        url: Its base URL.
        dialect: How it is asked.
        api_key: Sent as a bearer token unless it is empty.
    """

    def __init__(self, url: str, dialect: Dialect, *, api_key: str = "") -> None:
        self.address = address_of(url)
        self._dialect = dialect
        # How long a reply may take is bounded by whoever asks, who cancels.
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        self._arguments = client_arguments(url, api_key=api_key, parallel=_PARALLEL, timeout_s=timeout)
        self._client: httpx2.AsyncClient | None = None

    async def served(self) -> dict[str, int | None]:
        """Return the names of the models that it serves, each with the most tokens that it takes, if it says so.

        Raises PoolingUnreachable.
        """
        reply = await self._call("GET", _MODELS, None)
        try:
            entries = [(entry["id"], entry.get("max_model_len")) for entry in reply["data"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise PoolingUnreachable(f"{self.address}: {_MODELS}: not a list of models") from error
        spare = self._dialect.spare_tokens
        return {str(name): length - spare if isinstance(length, int) else None for name, length in entries}

    async def outputs(self, name: str, rows: Sequence[Sequence[int]]) -> Pooled:
        """Return the model's outputs for rows of token ids.

        Raises:
            PoolingUnreachable: It does not answer, or not this model's calls.
            PoolingFailed: It fails on this call.
            PoolingRefused: It refuses the rows.
            OutOfMemory: It lacks memory for them.
            NoLogits: Its reply does not have numbers for each row.
        """
        reply = await self._call("POST", self._dialect.path, self._dialect.body(name, rows))
        return self._dialect.pooled(reply, len(rows))

    async def watched(self, on_closed: Callable[[], None]) -> IdleConnection:
        """Connect, send nothing, and call ``on_closed`` once the server or its system closes the connection.

        Raises OSError or TimeoutError if there is no connection.
        """
        return await IdleConnection.to(self._arguments["base_url"], on_closed)

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.aclose()

    async def _call(self, method: str, path: str, body: Any) -> Any:
        if self._client is None:
            self._client = httpx2.AsyncClient(**self._arguments)
        where = f"{self.address}: {path}"
        try:
            reply = await self._client.request(method, path, json=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise PoolingUnreachable(f"{where}: {type(error).__name__}: {error}") from error
        except httpx2.HTTPError as error:
            raise PoolingFailed(f"the server that runs it ends the call: {type(error).__name__}") from error
        if reply.is_success:
            try:
                return reply.json()
            except (ValueError, RecursionError) as error:
                raise PoolingFailed("the server that runs it answers with what is not JSON") from error
        words = said(reply.text)
        if _OUT_OF_MEMORY in words.lower():
            raise OutOfMemory(f"the server that runs it lacks memory for the tokens: status {reply.status_code}")
        if not reply.is_error or reply.status_code in _NOT_OF_ROWS:
            raise PoolingUnreachable(f"{where}: {reply.status_code}: {words}")
        log.warning("a pooling server fails", server=self.address, path=path, status=reply.status_code, words=words)
        if reply.is_client_error:
            raise PoolingRefused(f"the server that runs it refuses the tokens with status {reply.status_code}")
        raise PoolingFailed(f"the server that runs it fails with status {reply.status_code}")
