"""The servers of one version: which of them have proven that they give its logits, and which of these is asked.

A server that fails is asked again only after it has proven anew what it serves, because it may have been started again
with other weights. The others prove it once a minute, because a server can be started again while nothing is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.pooling_file import PoolingFile
from rewardloop_server.pooling.dialects import Logits, NoLogits
from rewardloop_server.pooling.endpoint import PoolingEndpoint, PoolingRefused, PoolingUnreachable
from rewardloop_server.pooling.prove import OtherLogits, check_proof
from rewardloop_server.scoring.engine import EngineAway, OutOfMemory

log = structlog.get_logger()

# A connection that the server has just closed fails once, so a call is tried so often.
_ATTEMPTS = 2
_PROVE_EVERY_S = 1.0
_PROVE_S = 30.0
_LASTS_S = 60.0  # after so long a proof is repeated


@dataclass(slots=True, eq=False)
class _Server:
    """One server.

    Attributes:
        is_proven: It has given the logits of the proof, and no call of it has failed since.
        is_away: It does not answer; else, if it is not proven, it answers with something else.
        why: Why it is not used.
        proven_at: When it last gave the logits of the proof, on the monotonic clock.
        in_flight: How many calls it has.
        proving: Held while it proves what it serves.
    """

    endpoint: PoolingEndpoint
    is_proven: bool = False
    is_away: bool = False
    why: str = ""
    proven_at: float = 0.0
    in_flight: int = 0
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)


class VersionServers:
    """All servers that may run a version. Its methods are coroutines of one event loop.

    Args:
        manifest: The version's manifest.
        file: What a server must serve, and prove.
        rows: The token ids of the proof.
        endpoints: The servers.
    """

    def __init__(
        self, manifest: Manifest, file: PoolingFile, rows: Sequence[Sequence[int]], endpoints: Sequence[PoolingEndpoint]
    ) -> None:
        self._manifest = manifest
        self._file = file
        self._rows = rows
        self._servers = [_Server(endpoint) for endpoint in endpoints]

    async def prove(self) -> None:
        """Let each server prove what it serves that has not.

        Raises:
            EngineAway: None is proven then, and one of them does not answer.
            OtherLogits: None is proven, and all of them answer.
        """
        await asyncio.gather(*(self._prove(server) for server in self._servers if not server.is_proven))
        if not any(server.is_proven for server in self._servers):
            kind = EngineAway if any(server.is_away for server in self._servers) else OtherLogits
            raise kind(self._reasons)

    async def keep_proven(self) -> None:
        """Let servers prove again what they serve, those that have failed at once, until cancelled."""
        while True:
            await asyncio.sleep(_PROVE_EVERY_S)
            before = time.monotonic() - _LASTS_S
            await asyncio.gather(
                *(self._prove(server) for server in self._servers if not server.is_proven),
                *(self._prove_again(server) for server in self._servers if server.proven_at < before),
            )

    async def outputs(self, rows: Sequence[Sequence[int]]) -> Logits:
        """Return the outputs for rows of token ids, (rows, outputs), of the server that has the least to do.

        Raises:
            EngineAway: No server that has proven what it serves answers.
            PoolingRefused: The server refuses the rows.
            OutOfMemory: It lacks memory for them.
            NoLogits: Its reply does not have numbers for each row.
        """
        for _ in range(_ATTEMPTS):
            while proven := [server for server in self._servers if server.is_proven]:
                server = min(proven, key=lambda each: each.in_flight)
                server.in_flight += 1
                try:
                    return await server.endpoint.outputs(self._file.name, rows)
                except PoolingUnreachable as error:
                    self._lose(server, str(error), is_away=True)
                finally:
                    server.in_flight -= 1
            try:
                await self.prove()
            except OtherLogits as error:
                raise EngineAway(str(error)) from error
        raise EngineAway(self._reasons)

    @property
    def _reasons(self) -> str:
        """Why servers are not used, in one line."""
        return "; ".join(server.why for server in self._servers if server.why)

    async def _prove(self, server: _Server) -> None:
        async with server.proving:
            if server.is_proven:
                return
            try:
                async with asyncio.timeout(_PROVE_S):
                    difference = await self._difference(server.endpoint)
            except TimeoutError:
                self._lose(server, f"{server.endpoint.address} does not answer within {_PROVE_S:.0f} s", is_away=True)
            except PoolingUnreachable as error:
                self._lose(server, str(error), is_away=True)
            except (PoolingRefused, OtherLogits, OutOfMemory) as error:
                self._lose(server, str(error), is_away=False)
            else:
                server.is_proven, server.is_away, server.why = True, False, ""
                server.proven_at = time.monotonic()
                log.info(
                    "pooling server proven",
                    server=server.endpoint.address,
                    name=self._file.name,
                    model=self._manifest.model,
                    version=self._manifest.version,
                    difference=float(f"{difference:.3g}"),
                    tolerance=self._file.tolerance,
                )

    async def _prove_again(self, server: _Server) -> None:
        """Lose a server that serves something else by now. One that does not answer is left to those who ask it."""
        async with server.proving:
            if not server.is_proven:
                return
            server.proven_at = time.monotonic()
            try:
                async with asyncio.timeout(_PROVE_S):
                    await self._difference(server.endpoint)
            except OtherLogits as error:
                self._lose(server, str(error), is_away=False)
            except (TimeoutError, PoolingUnreachable, PoolingRefused, OutOfMemory) as error:
                log.warning("pooling server does not prove again what it serves", why=str(error))

    async def _difference(self, endpoint: PoolingEndpoint) -> float:
        """Return the largest difference of its outputs from the proof. Raises what `_prove` catches."""
        name, longest = self._file.name, self._manifest.max_length
        served = await endpoint.served()
        if name not in served:
            raise OtherLogits(f"{endpoint.address} serves {', '.join(sorted(served)) or 'nothing'}, and not {name!r}")
        length = served[name]
        if length is not None and length < longest:
            raise OtherLogits(
                f"{endpoint.address} takes at most {length} tokens, and the version's texts have up to {longest}"
            )
        try:
            return check_proof(self._file, await endpoint.outputs(name, self._rows), self._manifest.precision)
        except (OtherLogits, NoLogits) as error:
            raise OtherLogits(f"{endpoint.address} does not serve it as {name!r}: {error}") from error

    def _lose(self, server: _Server, why: str, *, is_away: bool) -> None:
        """Ask this server no more until it has proven what it serves."""
        if why != server.why:
            log.error("pooling server not used", version=self._manifest.version, why=why)
        server.is_proven, server.is_away, server.why = False, is_away, why
