"""Makes the Grafana dashboard and the README's table of metrics from the definitions of the metrics.

`python -m rewardloop_observability` writes both into deploy/observability. It is a tool of this repository: the wheel
does not have it.
"""
