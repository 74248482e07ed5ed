"""The PromQL that several panels share.

``where`` is a list of label matchers without braces; by default it keeps the processes that are chosen at the top of
the dashboard.
"""

from __future__ import annotations

# A PromQL expression, and the legend of its lines as a template over their labels.
Query = tuple[str, str]

AT = 'instance=~"$instance"'
OF = f'{AT}, model=~"$model"'
EVERY = "[$__rate_interval]"


def rate(metric: str, by: str, where: str = AT) -> str:
    """Increase of a counter in each second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}{EVERY}))"


def increase(metric: str, by: str, where: str = OF) -> str:
    """Increase of a counter in each interval of the graph, summed by labels."""
    return f"sum by ({by}) (increase({metric}{{{where}}}{EVERY}))"


def quantile(share: float, histogram: str, by: str = "", where: str = AT) -> str:
    """The value that this share of a histogram's observations does not exceed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, where)})"


def quantiles(histogram: str, by: str = "", where: str = AT) -> tuple[Query, ...]:
    """A histogram's median and 99th percentile as two lines, with the labels in their legends."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else ""
    return tuple((quantile(q, histogram, by, where), f"p{100 * q:.0f} {legend}".strip()) for q in (0.5, 0.99))


def mean(histogram: str, by: str = "", where: str = AT) -> str:
    """A histogram's mean."""
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def share(counter: str, by: str, part: str) -> str:
    """The share of a counter's increase that also matches ``part``."""
    return f"{rate(counter, by, f'{AT}, {part}')} / {rate(counter, by)}"
