"""The PromQL that panels share."""

from __future__ import annotations

from panels import Query

AT = 'instance=~"$instance"'
OF = f'{AT}, model=~"$model"'
HIT = f'{AT}, outcome="hit"'
AGREE = f'{AT}, outcome="agree"'
EVERY = "[$__rate_interval]"


def rate(metric: str, by: str, where: str = AT) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}{EVERY}))"


def quantile(share: float, histogram: str, by: str = "", where: str = AT) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, where)})"


def mean(histogram: str, by: str = "", where: str = AT) -> str:
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def quantiles(histogram: str, by: str = "", where: str = AT) -> tuple[Query, ...]:
    """Median and 99th percentile."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else ""
    return tuple((quantile(q, histogram, by, where), f"p{100 * q:.0f} {legend}".strip()) for q in (0.5, 0.99))
