"""Loads versions that a server elsewhere runs, as the engine of a serving process does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.guard.watch import Watch
from rewardloop_server.loading.limits import LoadLimits
from rewardloop_server.loading.prober import Prober
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.pooling.dialects import DIALECTS
from rewardloop_server.pooling.endpoint import PoolingEndpoint
from rewardloop_server.pooling.loading import PooledVersions
from rewardloop_server.scoring.engine import RewardModel
from support.pooling_server import PoolingServer


@contextmanager
def loading(*urls: str, api: str = "vllm", key: str = "", prober: Prober | None = None) -> Iterator[PooledVersions]:
    """What loads versions from these servers."""
    endpoints = [PoolingEndpoint(url, DIALECTS[api], api_key=key) for url in urls]
    pooled = PooledVersions(endpoints, ServerMetrics(), LoadLimits(), Watch(), prober)
    try:
        yield pooled
    finally:
        pooled.close()


def load(pooled: PooledVersions, directory: Path, manifest: Manifest) -> RewardModel:
    """The version, of the store in the directory."""
    return pooled.load(manifest, ModelStore(directory / "models").fetch("reward", manifest.version))


def refused(server: PoolingServer, directory: Path, manifest: Manifest, reason: str, api: str = "vllm") -> None:
    """Fails unless the version is refused for what this server gives."""
    with loading(server.url, api=api) as pooled, pytest.raises(NotLoadable, match=reason):
        load(pooled, directory, manifest)
