"""Reads a Prometheus metrics page, and computes totals and quantiles from it."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from rewardloop.process.quantile import quantile as estimated
from rewardloop.process.socket_owner import is_loopback


class PageUnreachable(Exception):
    """Raised if there is no readable metrics page at the address. The message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its labels."""

    name: str
    labels: dict[str, str]
    value: float


class MetricsPage:
    """The samples of one page, by their full names."""

    def __init__(self, text: str) -> None:
        """Read a page. Raises ValueError if the text is no metrics page."""
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(Sample(sample.name, dict(sample.labels), float(sample.value)))

    @classmethod
    def fetch(cls, url: str, timeout_s: float = 2.0) -> MetricsPage:
        """Fetch the page at ``url``, a URL or host:port, within ``timeout_s`` seconds. Raises PageUnreachable."""
        url = url if "://" in url else f"http://{url}"
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
        """Yield the samples of ``name`` that have ``labels``."""
        for sample in self._samples.get(name, ()):
            if labels.items() <= sample.labels.items():
                yield sample

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum over all samples with ``labels``, or None if there are none."""
        values = [sample.value for sample in self.samples(name, **labels)]
        return sum(values) if values else None

    def quantile(self, histogram: str, share: float, **labels: str) -> float | None:
        """Estimate a quantile from the buckets of all samples with ``labels``, linearly within a bucket.

        Args:
            histogram: Name of the histogram.
            share: Share of the observations that are at most as large, in (0, 1].
            **labels: Labels that the samples must have.

        Returns:
            The estimate; the last finite bound if the quantile lies above it; None without observations.
        """
        counts: dict[float, float] = defaultdict(float)
        for sample in self.samples(f"{histogram}_bucket", **labels):
            counts[float(sample.labels["le"])] += sample.value
        return estimated(counts, share)
