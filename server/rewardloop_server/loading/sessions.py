"""load: makes stored reward versions ready to run. Versions over one trunk share what is open of it.

A *delta* version is an adapter over another version, its trunk. With ONNX Runtime it runs on the sessions of the
trunk's graph, so loading it costs no more than reading a small file, whether or not the trunk itself serves. What is
open of a trunk lives as long as the last version over it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from rewardloop.formats.manifest import reads_alike
from rewardloop.formats.store import Manifest, ModelStore, VersionNotFound
from rewardloop.formats.text import Encoder
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.device.kinds import LARGE_SHAPES
from rewardloop_server.guard.watch import Watch
from rewardloop_server.loading.bounds import check_bounds
from rewardloop_server.loading.graph_tables import Tables
from rewardloop_server.loading.limits import LoadGuard, LoadLimits, size_of
from rewardloop_server.loading.opened import Opened, OpenGraph, Opens
from rewardloop_server.loading.opening import check_files, read_encoder, run_shapes
from rewardloop_server.loading.prober import Prober
from rewardloop_server.loading.progress import LARGE_BYTES
from rewardloop_server.loading.warm import check, check_text, warm_up
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import RewardModel

log = structlog.get_logger()

_LIMITS = LoadLimits()


@dataclass(slots=True)
class _Shared:
    """What is open of one trunk.

    Attributes:
        manifest: The version that was opened.
        encoder: That version's text encoder.
        opened: What runs it and its deltas.
        cost: How long its runs take.
        tables: How many ids and positions the graph has.
        guard: Stops runs of a load over it that do not end.
        versions: How many versions run on it.
    """

    manifest: Manifest
    encoder: Encoder
    opened: Opened
    cost: CostModel
    tables: Tables
    guard: LoadGuard
    versions: int


class SessionPool:
    """Loads versions of all reward models. It may be used from several threads; loads happen one at a time.

    Args:
        store: Where trunks are fetched from.
        device: Where versions run.
        metrics: Where the cost model is shown.
        limits: How much time and memory a load may take.
        watch: Stops what takes longer.
        prober: Tries a version in a child process before it is loaded here; None to load at once.
        opens: Opens a version that is no delta, by default its graph.
    """

    def __init__(
        self,
        store: ModelStore,
        device: Device,
        metrics: ServerMetrics,
        *,
        limits: LoadLimits = _LIMITS,
        watch: Watch | None = None,
        prober: Prober | None = None,
        opens: Opens = OpenGraph,
    ) -> None:
        self._store = store
        self._device = device
        self._metrics = metrics
        self._limits = limits
        self._watch = watch or Watch()
        self._prober = prober
        self._opens = opens
        self._shared: dict[str, _Shared] = {}
        self._counting = threading.Lock()
        self._loading = threading.Lock()

    @property
    def sessions(self) -> int:
        """The number of trunks that are open."""
        return len(self._shared)

    def load(self, manifest: Manifest, directory: Path) -> RewardModel:
        """Return the version, warm.

        Args:
            manifest: The version's manifest.
            directory: Its files, which the store has verified.

        Raises:
            NotLoadable: The version does not load or run.
            UnsafeVersion: Its graph asks for foreign files or operators.
            CorruptVersion: Its trunk must be read, and is altered.
        """
        with self._loading:
            digest = manifest.trunk.digest if manifest.trunk else manifest.digest
            is_open = self._take(digest)
            if not is_open:
                # A trunk is read and warmed under its own manifest, because its own weights are timed.
                graph, where = (manifest, directory) if manifest.trunk is None else self._trunk(manifest)
                self._open(graph, where)
            with self._giving_back_on_failure(digest):
                return self._model(manifest, directory, self._shared[digest], digest)

    def _trunk(self, manifest: Manifest) -> tuple[Manifest, Path]:
        """Return the manifest and the folder of a delta's trunk."""
        assert manifest.trunk is not None
        named = manifest.trunk
        model = manifest.model
        where = f"{model} {manifest.version} runs over version {named.version}"
        try:
            trunk = self._store.manifest(model, named.version)
            directory = self._store.fetch(model, named.version)
        except VersionNotFound as error:
            raise NotLoadable(f"{where}, which the store does not have") from error
        if trunk.digest != named.digest:
            raise NotLoadable(f"{where} of digest {named.digest[:12]}, but that has digest {trunk.digest[:12]}")
        if trunk.trunk is not None:
            raise NotLoadable(f"{where}, which is a delta itself")
        return trunk, directory

    def _open(self, manifest: Manifest, directory: Path) -> None:
        """Open and warm a version that is no delta. It counts as one version."""
        if (why := self._device.refuses(manifest.precision)) is not None:
            raise NotLoadable(f"{manifest.model} {manifest.version} does not load: {why}")
        found = None if self._prober is None else self._prober.probe(manifest, directory)
        size = size_of(directory, manifest)
        encoder = read_encoder(manifest, directory)
        if found is None:
            found = check_files(manifest, directory, encoder, allows_loops=self._limits.allows_loops)
        guard = LoadGuard.of(self._watch, self._limits, manifest, size)
        if size > LARGE_BYTES:
            log.info("opening a large version", version=manifest.version, gb=round(size / 1e9, 1))
        started = time.monotonic()
        opened = self._opens(manifest, directory, self._device, guard)
        if size > LARGE_BYTES:
            log.info("opened a large version", version=manifest.version, seconds=round(time.monotonic() - started, 1))
        model = RewardModel(manifest, encoder, opened.trial(), CostModel(0.0, 0.0, 0.0))
        cost = warm_up(model, found.highest, guard, LARGE_SHAPES[self._device.kind])
        with self._counting:
            self._shared[manifest.digest] = _Shared(manifest, encoder, opened, cost, found.tables, guard, 1)

    def _model(self, manifest: Manifest, directory: Path, shared: _Shared, digest: str) -> RewardModel:
        guard = replace(shared.guard, model=manifest.model, version=manifest.version)
        shapes = run_shapes(manifest, self._device)
        if manifest.trunk is None:
            runner = shared.opened.runner(shapes)
        else:
            runner = shared.opened.delta(manifest, directory, shapes, guard)
        # The encoder is shared if it can be. Reading a tokenizer holds the interpreter's lock, for as long as all else
        # that a delta needs takes together.
        encoder = shared.encoder if reads_alike(manifest, shared.manifest) else self._encoder(manifest, directory)
        model = RewardModel(
            manifest,
            encoder,
            runner,
            shared.cost,
            functools.partial(self._close, manifest, digest),
        )
        if manifest.trunk is not None or manifest.heads != shared.manifest.heads:
            check(model, 1, min(16, manifest.max_length), encoder.format.pad, guard)
        if encoder is not shared.encoder:
            highest = check_bounds(encoder, shared.tables, f"{manifest.model} {manifest.version}")
            check(model, 1, manifest.max_length, highest, guard)
        if encoder is not shared.encoder or shared.versions == 1:
            check_text(model)
        self._metrics.show_cost(manifest, shared.cost.terms())
        return model

    def _encoder(self, manifest: Manifest, directory: Path) -> Encoder:
        if manifest.trunk is not None and self._prober is not None:
            self._prober.probe(manifest, directory)
        return read_encoder(manifest, directory)

    def _take(self, digest: str) -> bool:
        with self._counting:
            if (shared := self._shared.get(digest)) is None:
                return False
            shared.versions += 1
            return True

    def _give_back(self, digest: str) -> None:
        with self._counting:
            shared = self._shared[digest]
            shared.versions -= 1
            if shared.versions == 0:
                del self._shared[digest]

    def _close(self, manifest: Manifest, digest: str) -> None:
        self._give_back(digest)
        self._metrics.forget_cost(manifest)

    @contextmanager
    def _giving_back_on_failure(self, digest: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._give_back(digest)
            raise
