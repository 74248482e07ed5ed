"""Builds the parts through which groups are scored: versions, tokenizers, the queue, and the engine behind it."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rewardloop.formats.mixing.mixture_file import BadMixtures, MixtureFile, read_mixtures
from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.pooling_file import POOLING
from rewardloop.formats.vocabulary import LANES
from rewardloop.process.secret_files import read_secret
from rewardloop_server.channel.front import Front
from rewardloop_server.channel.link import EngineLink
from rewardloop_server.channel.remote_batcher import RemoteBatcher
from rewardloop_server.channel.remote_versions import RemoteVersions
from rewardloop_server.device.choose import Device, choose_device
from rewardloop_server.device.kinds import LEAST_BOUND_S
from rewardloop_server.device.priority import step_back
from rewardloop_server.guard.watch import RunBounds, Watch
from rewardloop_server.loading.limits import LoadLimits
from rewardloop_server.loading.opened import OpenGraph, Opens
from rewardloop_server.loading.prober import GRAPH_PROBE, TORCH_PROBE, Prober, child_of
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.mixing.mixture_scorer import MixtureScorer
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.pooling.dialects import DIALECTS
from rewardloop_server.pooling.endpoint import PoolingEndpoint
from rewardloop_server.pooling.loading import PooledVersions
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.batching import Batching, Version
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.offer import Places
from rewardloop_server.scoring.score_group import GroupScorer, TraceStages
from rewardloop_server.scoring.shadow import ShadowScorer
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.settings import PROG, ServeSettings
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost, Versions

# What the torch engine needs beside what every server has.
_OF_TORCH = ("torch", "transformers", "safetensors")


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the versions, as those parts see it that hand groups to it.

    Attributes:
        watch: Ends what does not end by itself in this process.
        batcher: The queue in front of it.
        store: Where its versions come from.
        load: Makes a version ready that the store has given; as of `VersionHost`.
        close: Ends its child processes.
        take_hosts: Given the hosts of its versions, by model, before anything is served.
    """

    watch: Watch
    batcher: Batching
    store: Versions
    load: Callable[[Manifest, Path], Version]
    close: Callable[[], None]
    take_hosts: Callable[[Mapping[str, VersionHost[Version]]], None] = lambda hosts: None


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """An engine in this process: sessions and servers elsewhere, and the queue in front of them."""

    watch: Watch
    prober: Prober
    pool: SessionPool
    pooled: PooledVersions
    batcher: Batcher
    store: ModelStore

    @property
    def engine(self) -> Engine:
        """The engine as other parts see it."""
        return Engine(self.watch, self.batcher, self.store, self.load, self.close)

    def load(self, manifest: Manifest, directory: Path) -> RewardModel:
        """Return the version, warm, by what runs it: a graph here, or a server elsewhere. Both say what is raised."""
        is_elsewhere = POOLING in manifest.files
        return self.pooled.load(manifest, directory) if is_elsewhere else self.pool.load(manifest, directory)

    def close(self) -> None:
        """End its child processes, and its calls of servers elsewhere."""
        self.prober.close()
        self.pooled.close()


def local_engine(settings: ServeSettings, store: ModelStore, metrics: ServerMetrics) -> LocalEngine:
    """Choose the device, and build the sessions' pool, what calls servers elsewhere, and the batcher.

    Raises:
        SystemExit: If the device cannot be used, or the key file of servers elsewhere cannot be read.
    """
    device, opens, child = engine_of(settings, metrics)
    watch = Watch(settings.run_grace_s)
    least_s = LEAST_BOUND_S[device.kind]
    load_limits = LoadLimits(
        max(least_s, settings.load_limit_s), settings.load_memory_mib * 2**20, settings.allow_loops
    )
    prober = Prober(device, load_limits, child)
    is_probed = settings.load_probe == "always" or (settings.load_probe == "unsigned" and not settings.trusted_keys)
    tried_by = prober if is_probed else None
    pool = SessionPool(store, device, metrics, limits=load_limits, watch=watch, prober=tried_by, opens=opens)
    pooled = PooledVersions(pooling_endpoints(settings), metrics, load_limits, watch, tried_by)
    batcher = Batcher(
        token_budget=settings.token_budget,
        lanes=lane_limits(settings),
        trainer_max_wait_s=settings.trainer_max_wait_ms / 1000,
        metrics=metrics,
        engine_nice=settings.engine_nice if device.kind == "cpu" else 0,  # it only starts a GPU's work
        places=Places(device.names, device.streams),
        watch=watch,
        bounds=RunBounds(max(least_s, settings.run_limit_s), settings.run_limit_factor, settings.run_grace_s),
    )
    return LocalEngine(watch, prober, pool, pooled, batcher, store)


def engine_of(settings: ServeSettings, metrics: ServerMetrics) -> tuple[Device, Opens, Sequence[str]]:
    """Return the device that the settings ask for, what opens versions on it, and the command that tries them.

    Raises SystemExit if the device cannot be used, or a package is missing that the engine needs.
    """
    choose: Callable[..., Device] = functools.partial(choose_device, spin=settings.spin, adapters=settings.adapters)
    opens: Opens = OpenGraph
    child = child_of(GRAPH_PROBE)
    if settings.engine == "torch":
        if missing := [name for name in _OF_TORCH if find_spec(name) is None]:
            raise SystemExit(
                f"{PROG}: --engine torch needs {', '.join(missing)}: pip install 'rewardloop[server,trainer]', on a GPU"
                " 'rewardloop[gpu,trainer-gpu]'"
            )
        # Imported here, because torch may not be installed, and takes seconds.
        from rewardloop_server.torch_engine.device import choose_torch_device
        from rewardloop_server.torch_engine.opening import OpenTorch
        from rewardloop_server.torch_engine.prefixes import Prefixes

        kept = settings.prefix_cache_mib * 2**20
        prefixes = Prefixes(kept, metrics.looked_up_prefix, metrics.prefix_cache_bytes.set) if kept else None
        choose, child = choose_torch_device, child_of(TORCH_PROBE)
        opens = functools.partial(OpenTorch, prefixes=prefixes)
    try:
        device = choose(
            settings.device,
            threads=settings.intra_op_threads,
            streams=settings.streams,
            memory_gb=settings.device_memory_gb,
            tf32=settings.tf32,
            device_ids=settings.gpus,
        )
    except RuntimeError as error:
        raise SystemExit(f"{PROG}: {error}") from error
    return device, opens, child


def pooling_endpoints(settings: ServeSettings) -> list[PoolingEndpoint]:
    """Return the servers elsewhere. Raises SystemExit if the file of their key cannot be read."""
    try:
        key = read_secret(settings.pooling_api_key_file)
    except OSError as error:
        raise SystemExit(f"{PROG}: --pooling-api-key-file: {error}") from error
    dialect = DIALECTS[settings.pooling_api]
    return [PoolingEndpoint(url, dialect, api_key=key) for url in settings.pooling_urls]


@dataclass(frozen=True, slots=True)
class Scoring:
    """The parts through which groups are scored. Reward models have a host each, and share all others.

    Attributes:
        hosts: The versions of each reward model, "reward" first.
        scorers: Who scores a request, by the model or the mixture that it names.
    """

    watch: Watch
    hosts: Mapping[str, VersionHost[Version]]
    tokenizers: TokenizePool
    batcher: Batching
    scorers: Scorers
    close_engine: Callable[[], None]

    @property
    def is_stuck(self) -> bool:
        """Whether requests for the model "reward" are turned away: the engine is stuck, or its live version is away."""
        live = self.hosts[REWARD].live
        return self.batcher.is_stuck or (live is not None and live.is_away)

    def close(self) -> None:
        """End the threads and child processes of the parts."""
        self.close_engine()
        self.tokenizers.close()


def build_scoring(
    settings: ServeSettings,
    store: ModelStore,
    mixtures: MixtureFile | None,
    freshness: Freshness,
    metrics: ServerMetrics,
    trace_stages: TraceStages | None,
    front: Front | None = None,
) -> Scoring:
    """Build the versions' hosts, the tokenizers, and the scorers that use them, over an engine.

    The engine is this process's own, or that of another process if this one is a front.
    """
    if front is None:
        engine = local_engine(settings, store, metrics).engine
    else:
        engine = remote_engine(settings, store, metrics, front)
    metrics.runs_by(settings.engine)
    batcher = engine.batcher
    hosts = reward_hosts(settings, engine, metrics)
    engine.take_hosts(hosts)
    tokenizers = TokenizePool(settings.tokenize_threads, engine.watch)
    metrics.tokenize_waiting_requests.set_function(lambda: tokenizers.waiting)
    is_cached = {"production": settings.cache_production, "trainer": settings.cache_trainer}
    cache = ScoreCache(max_mib=settings.cache_mib, lanes=[lane for lane in LANES if is_cached[lane]], metrics=metrics)
    scorers = {
        name: GroupScorer(
            host,
            tokenizers,
            batcher,
            cache,
            freshness,
            ShadowScorer(host, tokenizers, batcher, metrics),
            metrics,
            trace_stages,
        )
        for name, host in hosts.items()
    }
    mixed: dict[str, MixtureScorer] = {}
    if mixtures is not None:
        for name, mixture in mixtures.mixtures.items():
            mixed[name] = MixtureScorer(name, mixture, mixtures.version, scorers, batcher, metrics)
    scoring = Scoring(engine.watch, hosts, tokenizers, batcher, Scorers(scorers, mixed), engine.close)
    metrics.engine_stuck.labels(model=REWARD).set_function(lambda: float(scoring.is_stuck))
    return scoring


def mixtures_of(settings: ServeSettings) -> MixtureFile | None:
    """Read the file of mixtures, if the settings name one. Raises SystemExit with status 2 if it cannot be used."""
    if settings.mixtures is None:
        return None
    try:
        return read_mixtures(settings.mixtures, {REWARD, *settings.reward_models})
    except BadMixtures as error:
        print("\n".join(f"{PROG}: {line}" for line in str(error).splitlines()), file=sys.stderr)
        raise SystemExit(2) from error


def load_threads(settings: ServeSettings) -> ThreadPoolExecutor:
    """Return the threads that load versions."""
    return ThreadPoolExecutor(2, "load", functools.partial(step_back, settings.engine_nice))


def reward_hosts(settings: ServeSettings, engine: Engine, metrics: ServerMetrics) -> dict[str, VersionHost[Version]]:
    """Build the host of each reward model. A version that does not load keeps none of the others from theirs."""
    threads = load_threads(settings)
    return {
        name: VersionHost[Version](
            name,
            engine.store,
            engine.load,
            metrics.switched,
            metrics.resident,
            resident_versions=settings.resident_versions,
            load_threads=threads,
            on_refused=metrics.refused,
        )
        for name in (REWARD, *settings.reward_models)
    }


def remote_engine(settings: ServeSettings, store: ModelStore, metrics: ServerMetrics, front: Front) -> Engine:
    """Return the engine of another process, for one of its fronts. Call it on the event loop that will serve."""
    link = EngineLink(front.folder.engine)
    versions = RemoteVersions(store, link, asyncio.get_running_loop())
    batcher = RemoteBatcher(link, versions, metrics)
    watch = Watch(settings.run_grace_s)
    return Engine(watch, batcher, versions, versions.load, lambda: None, versions.take_hosts)


def lane_limits(settings: ServeSettings) -> dict[str, LaneLimits]:
    """Return the bounds of each lane of the scoring queue."""
    trainer_run_s = settings.trainer_run_ms / 1000
    return {
        "production": LaneLimits(
            settings.queue_tokens_production, settings.queue_ms_production / 1000, settings.production_run_ms / 1000
        ),
        "trainer": LaneLimits(settings.queue_tokens_trainer, settings.queue_ms_trainer / 1000, trainer_run_s),
        "shadow": LaneLimits(settings.queue_tokens_shadow, run_s=trainer_run_s),
    }
