"""Makes versions ready that servers elsewhere run: reads what they must serve, has them prove it, and times them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.pooling_file import POOLING, BadPoolingFile, PoolingFile
from rewardloop.formats.text import Encoder
from rewardloop_server.calls.errors import EngineStuck, NotLoadable
from rewardloop_server.guard.watch import Watch
from rewardloop_server.loading.bounds import check_bounds
from rewardloop_server.loading.graph_tables import Tables
from rewardloop_server.loading.limits import LoadGuard, LoadLimits, size_of
from rewardloop_server.loading.opening import read_encoder
from rewardloop_server.loading.prober import Prober
from rewardloop_server.loading.warm import check_text, warm_up
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.pooling.endpoint import PoolingEndpoint
from rewardloop_server.pooling.loop_thread import LoopThread
from rewardloop_server.pooling.prove import OtherLogits, proof_rows
from rewardloop_server.pooling.remote_runner import RemoteCall, RemoteRunner
from rewardloop_server.pooling.servers import VersionServers
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import EngineAway, RewardModel


class PooledVersions:
    """Loads versions that servers elsewhere run. It may be used from several threads.

    Args:
        endpoints: The servers. A version is run by each of them that serves its name and proves it.
        metrics: Where the cost model is shown.
        limits: How much time a load may take.
        watch: Stops what takes longer.
        prober: Tries a version's tokenizer and texts in a child process before they are read here; None: no trial.
    """

    def __init__(
        self,
        endpoints: Sequence[PoolingEndpoint],
        metrics: ServerMetrics,
        limits: LoadLimits,
        watch: Watch,
        prober: Prober | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._metrics = metrics
        self._limits = limits
        self._watch = watch
        self._prober = prober
        self._loop = LoopThread("pooling", self._disconnect)

    def load(self, manifest: Manifest, directory: Path) -> RewardModel:
        """Return the version, proven and warm.

        Args:
            manifest: The version's manifest.
            directory: Its files, which the store has verified.

        Raises:
            NotLoadable: Its files cannot be read, or no server serves it as its proof says.
            EngineStuck: No server proves it, and one of them does not answer.
        """
        where = f"{manifest.model} {manifest.version}"
        if not self._endpoints:
            raise NotLoadable(f"{where} is served elsewhere, and no --pooling-urls says by which server")
        if self._prober is not None:
            self._prober.probe(manifest, directory)
        encoder = read_encoder(manifest, directory)
        file = _read(directory, manifest, encoder)
        servers = VersionServers(manifest, file, proof_rows(file, encoder, where), self._endpoints)
        guard = LoadGuard.of(self._watch, self._limits, manifest, size_of(directory, manifest))
        call = RemoteCall()
        try:
            with guard.running(call):
                call.result(self._loop.submit(servers.prove()))
        except OtherLogits as error:
            raise NotLoadable(f"{where} is not served: {error}") from error
        except EngineAway as error:
            raise EngineStuck(f"{where} is not served: {error}") from error
        runner = RemoteRunner(file, servers, self._loop)
        try:
            model = RewardModel(manifest, encoder, runner, CostModel(0.0, 0.0, 0.0))
            cost = warm_up(model, check_bounds(encoder, Tables(None, None), where), guard)
            model = RewardModel(manifest, encoder, runner, cost, functools.partial(self._metrics.forget_cost, manifest))
            check_text(model)
        except BaseException:
            runner.close()
            raise
        self._metrics.show_cost(manifest, cost.terms())
        return model

    def close(self) -> None:
        """End the thread that calls the servers."""
        self._loop.close()

    async def _disconnect(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()


def _read(directory: Path, manifest: Manifest, encoder: Encoder) -> PoolingFile:
    """Read the version's pooling file, and check that servers can run what it describes. Raises NotLoadable."""
    where = f"{manifest.model} {manifest.version} does not load"
    try:
        file = PoolingFile.from_json((directory / POOLING).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BadPoolingFile) as error:
        raise NotLoadable(f"{where}: {error}") from error
    if file.heads != manifest.heads:
        raise NotLoadable(f"{where}: {POOLING} makes {file.heads} logits, and its manifest says {manifest.heads} heads")
    if encoder.format.segment_ids or encoder.format.steps is not None:
        raise NotLoadable(f"{where}: a server that pools takes token ids alone, without segments and steps")
    return file
