"""Reads a Prometheus metrics page into figures that a person can use."""

from __future__ import annotations

import math
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from rewardloop_client._access import is_loopback


class PageUnreachable(Exception):
    """Nothing readable at the address; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its labels."""

    name: str
    labels: dict[str, str]
    value: float


class MetricsPage:
    """The samples of one page, by full name."""

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text is no metrics page."""
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(Sample(sample.name, dict(sample.labels), float(sample.value)))

    @classmethod
    def fetch(cls, url: str, timeout_s: float = 2.0) -> MetricsPage:
        """Raises PageUnreachable."""
        try:
            host = urllib.parse.urlsplit(url).hostname or ""
            # A proxy cannot reach what listens on this machine's loopback.
            proxies = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
            with urllib.request.build_opener(*proxies).open(url, timeout=timeout_s) as answer:
                return cls(answer.read().decode("utf-8"))
        except TimeoutError as error:
            raise PageUnreachable(f"did not answer within {timeout_s:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise PageUnreachable(f"did not answer within {timeout_s:g} s") from error
            raise PageUnreachable(str(getattr(error.reason, "strerror", None) or error.reason)) from error
        except (OSError, ValueError) as error:  # a broken connection, no URL, or no metrics
            raise PageUnreachable(str(error) or type(error).__name__) from error

    def samples(self, name: str, **labels: str) -> Iterator[Sample]:
        """Those of ``name`` that have ``labels``."""
        for sample in self._samples.get(name, ()):
            if labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float | None:
        """Sum over all samples with ``labels``; None when there is none."""
        values = [sample.value for sample in self.samples(name, **labels)]
        return sum(values) if values else None

    def quantile(self, histogram: str, share: float, **labels: str) -> float | None:
        """Estimated from the buckets of all samples with ``labels`` together, linear within a bucket.

        None without observations; the last finite bound when it lies above that.
        """
        counts: dict[float, float] = defaultdict(float)
        for sample in self.samples(f"{histogram}_bucket", **labels):
            counts[float(sample.labels["le"])] += sample.value
        bounds = sorted(counts)
        if not bounds or counts[bounds[-1]] == 0:
            return None
        rank = share * counts[bounds[-1]]
        below, lower = 0.0, 0.0
        for bound in bounds:
            if counts[bound] >= rank:
                if math.isinf(bound):
                    return lower
                inside = counts[bound] - below
                return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
            below, lower = counts[bound], bound
        return lower
