"""Reaches the ONNX Runtime sessions of a loaded version."""

from __future__ import annotations

from rewardloop_server.scoring.engine import GraphRunner, RewardModel


def graph_runner(model: RewardModel) -> GraphRunner:
    """Return what runs the version, which is a graph."""
    assert isinstance(model._runner, GraphRunner)
    return model._runner
