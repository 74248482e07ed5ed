"""Runs a version on servers elsewhere. Rows go there without padding, as token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import numpy as np

from rewardloop.formats.storing.pooling_file import PoolingFile
from rewardloop.formats.text import Encoded
from rewardloop_server.pooling.dialects import NoLogits
from rewardloop_server.pooling.loop_thread import LoopThread
from rewardloop_server.pooling.servers import VersionServers
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import EngineAway, Floats, UnusableLogits
from rewardloop_server.scoring.layout import Feeds, Signature
from rewardloop_server.scoring.plan import Limit, Run

# A row is its token ids and nothing else.
_SIGNATURE = Signature(is_decoder=False, takes_segments=False, taken=frozenset(("input_ids",)), broadcasts_mask=False)

T = TypeVar("T")


class RemoteCall:
    """The options of one run. Setting ``terminate`` cancels the call, whichever thread does it.

    Attributes:
        waits: The call waits for servers that are lost to prove what they serve.
    """

    def __init__(self) -> None:
        self.waits = False
        self._future: Future[Any] | None = None
        self._terminate = False

    @property
    def terminate(self) -> bool:
        """Whether the run was told to stop."""
        return self._terminate

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._terminate = value
        if value and self._future is not None:
            self._future.cancel()

    def result(self, future: Future[T]) -> T:
        """Wait for the call. Raises what the call raises, and EngineAway if it was cancelled."""
        self._future = future
        if self._terminate:
            future.cancel()
        try:
            return future.result()
        except (CancelledError, asyncio.CancelledError) as error:
            raise EngineAway("the call was cancelled") from error


class RemoteRunner:
    """Runs a version on its servers; see `rewardloop_server.scoring.engine.Runner`.

    Args:
        file: How the servers' outputs become logits.
        servers: The servers.
        loop: Where calls are made.
    """

    is_elsewhere = True
    places = ("a server elsewhere",)  # whichever place of this process a run is dealt to, the servers run it
    signature = _SIGNATURE

    def __init__(self, file: PoolingFile, servers: VersionServers, loop: LoopThread) -> None:
        self._weights = None if file.weights is None else np.array(file.weights)[:, None]
        self._servers = servers
        self._loop = loop
        self._keeping = loop.submit(servers.keep_proven())
        self._is_closed = False

    @property
    def is_away(self) -> bool:
        """Whether no server proves what it serves; as of `Runner`. One in doubt is waited for by each run."""
        return not self._servers.has_proven

    def plan(self, rows: Sequence[Encoded], cost: CostModel, limit: Limit) -> list[Run]:
        """Fill each run with the next rows up to the limit. Their lengths may differ, because nothing is padded."""
        runs, taken, seconds, tokens = list[Run](), list[int](), cost.fixed_s, 0
        for i, row in enumerate(rows):
            size = len(row.ids)
            row_s = cost.row_s(size)
            if taken and (seconds + row_s > limit.seconds or tokens + size > limit.tokens):
                runs.append(_run(taken, rows, seconds))
                taken, seconds, tokens = [], cost.fixed_s, 0
            taken.append(i)
            seconds += row_s
            tokens += size
        return [*runs, _run(taken, rows, seconds)] if taken else runs

    def lay_out(self, rows: Sequence[Encoded], run: Run, pad: int) -> Feeds:
        """Return the ids of all rows in one array, (tokens,), and how many each row has, (rows,)."""
        sequences = [rows[i].ids for i in run.rows]
        lengths = np.array([len(ids) for ids in sequences])
        ids = np.concatenate([np.array(each, dtype=np.int64) for each in sequences])
        return Feeds({"input_ids": ids, "lengths": lengths}, len(sequences), ids.size, ids.size)

    def options(self) -> RemoteCall:
        """Return what stops one run. Raises EngineAway once this is closed."""
        if self._is_closed:
            raise EngineAway("the version was closed")
        return RemoteCall()

    def persist(self, options: RemoteCall) -> None:
        """Let the call wait for a server that is lost; as of `Runner`."""
        options.waits = True

    def logits(self, feeds: Feeds, options: RemoteCall, *, place: int, alone: bool) -> Floats:
        """Have a server run the rows; as of `Runner`."""
        ends = np.cumsum(feeds.inputs["lengths"])[:-1]
        rows = [part.tolist() for part in np.split(feeds.inputs["input_ids"], ends)]
        try:
            outputs = options.result(self._loop.submit(self._servers.outputs(rows, waits=options.waits)))
        except NoLogits as error:
            raise UnusableLogits(str(error)) from error
        if self._weights is not None and outputs.shape[1] == len(self._weights):
            outputs = outputs @ self._weights
        return outputs.astype(np.float32)

    def close(self) -> None:
        """Watch the servers no more; as of `Runner`."""
        self._is_closed = True
        self._keeping.cancel()


def _run(taken: Sequence[int], rows: Sequence[Encoded], seconds: float) -> Run:
    return Run(tuple((i,) for i in taken), max(len(rows[i].ids) for i in taken), seconds)
