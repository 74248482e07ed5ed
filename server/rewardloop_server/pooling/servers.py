"""The servers of one version: which of them have proven that they give its logits, and which of these is asked.

A server on which a call fails is *in doubt*: it is asked again only after it has proven anew what it serves, because it
may have been started again with other weights. If it proves itself each time, the rows of the call are at fault, and
the server stays. A server is in doubt as well once it closes a connection on which nothing was sent, or names other
weights in a reply than in its proof. All prove it once a minute besides, because weights can change without any sign.
Each proof is a task of its own, so that a server which hangs delays no other.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.pooling_file import PoolingFile
from rewardloop_server.pooling.dialects import Logits, NoLogits
from rewardloop_server.pooling.endpoint import PoolingEndpoint, PoolingFailed, PoolingRefused, PoolingUnreachable
from rewardloop_server.pooling.idle_connection import IdleConnection
from rewardloop_server.pooling.prove import OtherLogits, check_proof
from rewardloop_server.scoring.engine import EngineAway, OutOfMemory

log = structlog.get_logger()

# So often rows may fail on servers that prove themselves afterwards, and once more on any, which they may have ended. A
# run has so many calls for each server.
_TRIES = 2
_PROVE_EVERY_S = 1.0
_PROVE_S = 30.0
_PROVE_IN_DOUBT_S = 5.0  # runs wait for such a proof
_LASTS_S = 60.0  # after so long a proof is repeated
# A server that closes an idle connection within so many seconds, or lets none be made, is watched again a minute later.
_LEAST_AGE_S = 1.0


@dataclass(slots=True, eq=False)
class _Server:
    """One server.

    Attributes:
        is_proven: It has given the logits of the proof, and has not failed to give them since.
        is_away: It does not answer; else, if it is not proven, it answers with something else.
        why: Why it is not used.
        proven_at: When its last proof began, on the monotonic clock.
        weights: What it called its weights in that proof.
        doubts: How often something cast doubt on it.
        settled: How often something had when the last proof that it gave began.
        in_flight: How many calls it has.
        proof: The proof that was begun last. One server has at most one under way.
        idle: The connection by which it is watched.
        watch_at: When another one may be tried.
    """

    endpoint: PoolingEndpoint
    is_proven: bool = False
    is_away: bool = False
    why: str = ""
    proven_at: float = 0.0
    weights: str = ""
    doubts: int = 0
    settled: int = 0
    in_flight: int = 0
    proof: asyncio.Task[None] | None = None
    idle: IdleConnection | None = None
    watch_at: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether it may be asked: it is proven, and not in doubt."""
        return self.is_proven and self.doubts == self.settled


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
        self._is_watching = False

    @property
    def has_proven(self) -> bool:
        """Whether a server has proven what it serves. It may be in doubt and prove again. Any thread may ask."""
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
            proofs = await _first_of(proofs)
        if not self.has_proven:
            kind = EngineAway if any(server.is_away for server in self._servers) else OtherLogits
            raise kind(self._reasons)

    async def keep_proven(self) -> None:
        """Watch the servers, and let them prove again what they serve, those that have failed at once, until cancelled.

        Each is watched from before a proof, so that none is started again unseen between the two.
        """
        self._is_watching = True
        for server in self._servers:
            server.proven_at = -math.inf
        try:
            while True:
                before = time.monotonic() - _LASTS_S
                for server in self._servers:
                    if not server.is_usable or server.proven_at < before:
                        self._proof(server)
                await asyncio.sleep(_PROVE_EVERY_S)
        finally:
            self._is_watching = False
            for server in self._servers:
                if server.proof is not None:
                    server.proof.cancel()
                if server.idle is not None:
                    server.idle.close()

    async def outputs(self, rows: Sequence[Sequence[int]], *, waits: bool = False) -> Logits:
        """Return the outputs for rows of token ids, (rows, outputs), of the server that has the least to do.

        A server in doubt is waited for if there is no other one. With ``waits`` one that is lost is as well. Whatever
        is raised but EngineAway is about the rows: the servers that it came from have proven themselves since.

        Raises:
            EngineAway: No server that proves what it serves answers.
            PoolingRefused: The servers refuse the rows.
            PoolingFailed: The servers fail on the rows.
            OutOfMemory: The server lacks memory for them.
            NoLogits: The replies do not have numbers for each row.
        """
        failures: list[tuple[_Server, Exception]] = []
        why = ""
        for _ in range(_TRIES * len(self._servers)):
            server = min(await self._usable(waits=waits), key=lambda each: each.in_flight)
            server.in_flight += 1
            try:
                pooled = await server.endpoint.outputs(self._file.name, rows)
            except asyncio.CancelledError:  # else it might be asked again and again, and another one never
                why = f"{server.endpoint.address} had not answered a run when it was stopped"
                self._lose(server, why, is_away=True)
                raise
            except (PoolingUnreachable, PoolingFailed, NoLogits, OutOfMemory) as error:
                if isinstance(error, OutOfMemory) and len(rows) > 1:
                    raise
                why = _named(server, error)
                self._doubt(server, why)
                if not isinstance(error, PoolingUnreachable):
                    failures.append((server, error))
            else:
                if pooled.weights == server.weights:
                    return pooled.outputs
                why = f"{server.endpoint.address} names other weights than in its proof: {pooled.weights[:80]!r}"
                self._doubt(server, why)
            finally:
                server.in_flight -= 1
            if len(failures) >= _TRIES:
                await self._raise_if_of_rows(failures)
            if len(failures) > _TRIES:
                break
        await self._usable()
        raise EngineAway(why)

    async def _usable(self, *, waits: bool = False) -> list[_Server]:
        """Return the servers that may be asked, waiting as `outputs` says if there is none. Raises EngineAway."""
        lost = {self._proof(server) for server in self._servers if waits and not server.is_proven}
        while lost and not any(server.is_usable for server in self._servers):
            lost = await _first_of(lost)
        while not (usable := [server for server in self._servers if server.is_usable]):
            proofs = {self._proof(server) for server in self._servers if server.is_proven}
            if not proofs:
                raise EngineAway(self._reasons)
            await _first_of(proofs)
        return usable

    async def _raise_if_of_rows(self, failures: Sequence[tuple[_Server, Exception]]) -> None:
        """Raise the last error if so many of these came from servers that prove themselves afterwards."""
        proofs = {self._proof(server) for server, _ in failures if server.is_proven and not server.is_usable}
        while proofs:
            proofs = await _first_of(proofs)
        if sum(server.is_usable for server, _ in failures) >= _TRIES:
            raise failures[-1][1]

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
        """Let a server prove what it serves, and once more if something casts doubt on it meanwhile.

        It is lost if it serves something else by now, or is away and may come back with something else. One that was
        usable, and is only slow or lacks memory at present, is left to those who ask it.
        """
        is_last = False
        while not await self._has_given_proof(server, is_last=is_last):
            is_last = True

    async def _has_given_proof(self, server: _Server, *, is_last: bool) -> bool:
        """Ask a server once for its proof. Returns whether there is no more to ask; the server may be lost."""
        doubts, was_usable = server.doubts, server.is_usable
        limit_s = _PROVE_IN_DOUBT_S if server.is_proven and not was_usable else _PROVE_S
        server.proven_at = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                await self._watch(server)
                difference, weights = await self._difference(server.endpoint)
        except (TimeoutError, OutOfMemory) as error:
            why = f"{server.endpoint.address}: {error if str(error) else f'no answer within {limit_s:.0f} s'}"
            if not server.is_usable:
                self._lose(server, why, is_away=isinstance(error, TimeoutError))
            else:
                log.warning("pooling server does not prove again what it serves", why=why)
            return True
        except (PoolingUnreachable, PoolingFailed) as error:
            # A connection that the server has just closed fails once.
            if server.is_proven and not is_last:
                self._doubt(server, _named(server, error))
                return False
            self._lose(server, _named(server, error), is_away=True)
            return True
        except (PoolingRefused, OtherLogits) as error:
            self._lose(server, str(error), is_away=False)
            return True
        if server.doubts != doubts:
            return False
        server.is_proven, server.is_away, server.why = True, False, ""
        server.settled, server.weights = doubts, weights
        if not was_usable:
            log.info(
                "pooling server proven",
                server=server.endpoint.address,
                name=self._file.name,
                model=self._manifest.model,
                version=self._manifest.version,
                difference=float(f"{difference:.3g}"),
                tolerance=self._file.tolerance,
            )
        return True

    async def _watch(self, server: _Server) -> None:
        """Have an idle connection to a server, if one can be had, whose end casts doubt on it."""
        now = time.monotonic()
        if not self._is_watching or now < server.watch_at or (server.idle is not None and server.idle.is_open):
            return
        if server.idle is not None and server.idle.age_s < _LEAST_AGE_S:
            server.idle, server.watch_at = None, now + _LASTS_S
            return
        server.idle = None
        try:
            server.idle = await server.endpoint.watched(
                lambda: self._doubt(server, f"{server.endpoint.address} has closed a connection")
            )
        except OSError:  # it may be away, or be reached by a proxy alone: the proof finds out
            server.watch_at = now + _LASTS_S

    async def _difference(self, endpoint: PoolingEndpoint) -> tuple[float, str]:
        """Return the largest difference of its outputs from the proof, and what it calls its weights.

        Raises what `_has_given_proof` catches.
        """
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
            pooled = await endpoint.outputs(name, self._rows)
            return check_proof(self._file, pooled.outputs, self._manifest.precision), pooled.weights
        except (OtherLogits, NoLogits) as error:
            raise OtherLogits(f"{endpoint.address} does not serve it as {name!r}: {error}") from error

    def _doubt(self, server: _Server, why: str) -> None:
        """Ask this server no more until it has proven again what it serves, which it is asked to do at once."""
        server.doubts += 1
        if server.is_proven:
            log.warning("pooling server has to prove again what it serves", version=self._manifest.version, why=why)
        if self._is_watching or server.is_proven:
            self._proof(server)

    def _lose(self, server: _Server, why: str, *, is_away: bool) -> None:
        """Ask this server no more until it has proven what it serves."""
        if why != server.why:
            log.error("pooling server not used", version=self._manifest.version, why=why)
        server.doubts += 1
        server.is_proven, server.is_away, server.why = False, is_away, why
        server.watch_at = 0.0


def _named(server: _Server, error: Exception) -> str:
    """Return what an error says, with the server's address."""
    return str(error) if isinstance(error, PoolingUnreachable) else f"{server.endpoint.address}: {error}"


async def _first_of(proofs: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until one of the proofs has ended, and return the others. Raises what a proof raises."""
    done, others = await asyncio.wait(proofs, return_when=asyncio.FIRST_COMPLETED)
    for proof in done:
        proof.result()
    return others
