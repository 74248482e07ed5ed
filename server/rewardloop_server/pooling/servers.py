"""The servers of one version: which of them have proven that they give its logits, and which of these is asked.

A server that fails, or does not answer a run in time, is asked again only after it has proven anew what it serves,
because it may have been started again with other weights. The others prove it once a minute, because a server can be
started again while nothing is asked. Each proof is a task of its own, so that a server which hangs delays no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
        proof: The proof that was begun last. One server has at most one under way.
    """

    endpoint: PoolingEndpoint
    is_proven: bool = False
    is_away: bool = False
    why: str = ""
    proven_at: float = 0.0
    in_flight: int = 0
    proof: asyncio.Task[None] | None = None


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

    @property
    def has_proven(self) -> bool:
        """Whether a server has proven what it serves, and has answered since. Any thread may ask."""
        return any(server.is_proven for server in self._servers)

    async def prove(self) -> None:
        """Let each server prove what it serves that has not, and return once one of all servers is proven.

        The proofs of slower servers go on.

        Raises:
            EngineAway: None is proven in the end, and one of them does not answer.
            OtherLogits: None is proven, and all of them answer.
        """
        proofs = {self._proof(server) for server in self._servers if not server.is_proven}
        while proofs and not self.has_proven:
            done, proofs = await asyncio.wait(proofs, return_when=asyncio.FIRST_COMPLETED)
            for proof in done:
                proof.result()
        if not self.has_proven:
            kind = EngineAway if any(server.is_away for server in self._servers) else OtherLogits
            raise kind(self._reasons)

    async def keep_proven(self) -> None:
        """Let servers prove again what they serve, those that have failed at once, until cancelled."""
        try:
            while True:
                await asyncio.sleep(_PROVE_EVERY_S)
                before = time.monotonic() - _LASTS_S
                for server in self._servers:
                    if not server.is_proven or server.proven_at < before:
                        self._proof(server)
        finally:
            for server in self._servers:
                if server.proof is not None:
                    server.proof.cancel()

    async def outputs(self, rows: Sequence[Sequence[int]]) -> Logits:
        """Return the outputs for rows of token ids, (rows, outputs), of the server that has the least to do.

        Raises:
            EngineAway: No server that has proven what it serves answers.
            PoolingRefused: The server refuses the rows.
            OutOfMemory: It lacks memory for them.
            NoLogits: Its reply does not have numbers for each row.
        """
        failure = ""
        for _ in range(_ATTEMPTS):
            while proven := [server for server in self._servers if server.is_proven]:
                server = min(proven, key=lambda each: each.in_flight)
                server.in_flight += 1
                try:
                    return await server.endpoint.outputs(self._file.name, rows)
                except PoolingUnreachable as error:
                    failure = str(error)
                    self._lose(server, failure, is_away=True)
                except asyncio.CancelledError:  # else it might be asked again and again, and another one never
                    self._lose(
                        server, f"{server.endpoint.address} had not answered a run when it was stopped", is_away=True
                    )
                    raise
                finally:
                    server.in_flight -= 1
            try:
                await self.prove()
            except OtherLogits as error:
                raise EngineAway(str(error)) from error
        raise EngineAway(self._reasons or failure)

    @property
    def _reasons(self) -> str:
        """Why servers are not used, in one line."""
        return "; ".join(server.why for server in self._servers if server.why)

    def _proof(self, server: _Server) -> asyncio.Task[None]:
        """Return the proof of a server that is under way, or begin one."""
        if server.proof is None or server.proof.done():
            server.proof = asyncio.create_task(self._prove(server))
        return server.proof

    async def _prove(self, server: _Server) -> None:
        """Repeat the proof of a server that is proven. If it is not, or is lost meanwhile, let it prove anew."""
        if server.is_proven:
            await self._prove_again(server)
        if not server.is_proven:
            await self._prove_anew(server)

    async def _prove_anew(self, server: _Server) -> None:
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
        """Lose a server that serves something else by now, or that is away and may come back with something else.

        One that is only slow, or lacks memory at present, is left to those who ask it.
        """
        server.proven_at = time.monotonic()
        try:
            async with asyncio.timeout(_PROVE_S):
                await self._difference(server.endpoint)
        except PoolingUnreachable as error:
            self._lose(server, str(error), is_away=True)
        except (PoolingRefused, OtherLogits) as error:
            self._lose(server, str(error), is_away=False)
        except (TimeoutError, OutOfMemory) as error:
            why = str(error) or f"no answer within {_PROVE_S:.0f} s"
            log.warning("pooling server does not prove again what it serves", server=server.endpoint.address, why=why)

    async def _difference(self, endpoint: PoolingEndpoint) -> float:
        """Return the largest difference of its outputs from the proof. Raises what `_prove_anew` catches."""
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
