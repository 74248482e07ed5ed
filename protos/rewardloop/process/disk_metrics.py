"""Reports to Prometheus how much room the disks have on which a process keeps its data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class DiskCollector(Collector):
    """Reports size and free bytes of the disk of each place, whenever the page is read.

    Args:
        places: Directories by the name that the label ``place`` has. URLs of object stores and empty texts are left
            out. For a directory that is not made yet it is the disk on which it will be.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = {name: Path(place) for name, place in places.items() if place and "://" not in place}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        labels = ("place",)
        return (
            GaugeMetricFamily("rewardloop_disk_free_bytes", "Bytes that the process may still write.", labels=labels),
            GaugeMetricFamily("rewardloop_disk_size_bytes", "Bytes of the disk of a place.", labels=labels),
        )

    def collect(self) -> Iterable[GaugeMetricFamily]:
        free, size = self.describe()
        for name, place in self._places.items():
            try:
                disk = os.statvfs(_existing(place))
            except OSError:  # it may not be looked at, and then there is nothing to say about it
                continue
            free.add_metric((name,), float(disk.f_bavail * disk.f_frsize))
            size.add_metric((name,), float(disk.f_blocks * disk.f_frsize))
        return (family for family in (free, size) if family.samples)


def _existing(place: Path) -> Path:
    """Return the directory, or the nearest one above it that is there."""
    return next((each for each in (place, *place.absolute().parents) if each.exists()), place)
