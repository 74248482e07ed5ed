"""A server with the torch engine serves, swaps and turns versions down as one that runs graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.processes import serving
from support.reward_bases import exported, trained_delta
from support.torch_versions import publish_export, publish_torch_delta

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient, RewardloopError

PROMPT, RESPONSES = "why is the sky blue", ["because light scatters", "please", "good refund", "refund", "bad"]


def scores(client: RewardloopClient, pin: str | None = None) -> list[float]:
    return [score.logit for score in client.score(PROMPT, RESPONSES, pin_version=pin).scores]


def test_versions_swap_over_one_trunk_and_score_as_their_graphs(tmp_path: Path, empty_redis_url: str) -> None:
    store, export = ModelStore(tmp_path / "models"), exported("qwen2")
    trunk = publish_export(store, export)
    for seed in (1, 2):
        publish_torch_delta(store, trunk, export.encoder, trained_delta(export.model, seed=seed))
    found: dict[str, list[list[float]]] = {}
    for engine, probe in (("onnx", "never"), ("torch", "always")):
        flags = ("--engine", engine, "--load-probe", probe, "--load-limit-s", "100")
        with (
            serving(tmp_path / "models", empty_redis_url, tmp_path / f"{engine}.log", *flags) as server,
            RewardloopClient(server.address, timeout_s=60) as client,
        ):
            assert client.operations.status().engine == engine
            assert server.figure("rewardloop_scoring_engine", engine=engine) == 1
            assert server.figure("rewardloop_scoring_engine") == 1
            found[engine] = []
            for version in ("1", "2", "3", "2"):
                client.promote("reward", version)
                found[engine].append(scores(client))
            found[engine].append(scores(client, pin="3"))
            client.set_canary("reward", "3", share=0.5)
            client.rollback("reward")
            assert server.process is not None
            maps = Path(f"/proc/{server.process.pid}/maps").read_text()
            assert ("libtorch" in maps) == (engine == "torch")
            assert server.terminate() == 0
    np.testing.assert_allclose(found["torch"], found["onnx"], atol=1e-5)
    assert np.abs(np.array(found["torch"][0]) - found["torch"][1]).max() > 0.1


def test_a_version_without_a_torch_model_is_not_promoted(tmp_path: Path, empty_redis_url: str) -> None:
    store, export = ModelStore(tmp_path / "models"), exported("qwen2")
    publish_export(store, export)

    def write(target: Path) -> None:
        for name in ("model.onnx", "tokenizer.json"):
            (target / name).write_bytes((export.directory / name).read_bytes())

    with (
        serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log", "--engine", "torch") as server,
        RewardloopClient(server.address, timeout_s=60, max_attempts=1) as client,
    ):
        store.publish(store.manifest("reward", 1), write)
        with pytest.raises(RewardloopError, match="no torch model beside its graph"):
            client.promote("reward", "2")
        assert np.isfinite(scores(client)).all()
