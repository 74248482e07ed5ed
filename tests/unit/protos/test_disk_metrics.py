"""How much room the disks of a process have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from rewardloop.process.disk_metrics import DiskCollector


def _values(registry: CollectorRegistry, name: str) -> dict[str, float]:
    return {s.labels["place"]: s.value for family in registry.collect() for s in family.samples if s.name == name}


def test_each_local_place_has_its_disk_also_before_it_is_made(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    places = {
        "store": str(tmp_path),
        "work": str(tmp_path / "not" / "yet"),
        "ledger": "s3://bucket/ledger",
        "spool": "",
    }
    registry.register(DiskCollector(places))
    disk = os.statvfs(tmp_path)
    size = _values(registry, "rewardloop_disk_size_bytes")
    assert size == {"store": disk.f_blocks * disk.f_frsize, "work": disk.f_blocks * disk.f_frsize}
    assert all(0 < free <= size["store"] for free in _values(registry, "rewardloop_disk_free_bytes").values())


def test_a_disk_that_cannot_be_looked_at_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "statvfs", fail)
    registry = CollectorRegistry()
    registry.register(DiskCollector({"store": str(tmp_path)}))
    assert _values(registry, "rewardloop_disk_size_bytes") == {}
