"""A trained policy that the worker could not serve, or that would answer wrongly, is not published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_rounds import Setting, fake_server
from support.policy_versions import quick_policy

from rewardloop_client.fake import FakeRewardloop
from rewardloop_trainer.export.policy import prove_policy


def searches_beams(model: Any, directory: Path) -> None:
    model.generation_config.num_beams = 2
    model.save_pretrained(directory)


def scores_no_numbers(model: Any, directory: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    model.save_pretrained(directory)


def lost_weights(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def trained(directory: Path, redis_url: str, server: FakeRewardloop, save: Callable[[Any, Path], None]) -> Setting:
    """A round whose candidate is trained and in the round's directory."""
    setting = Setting(directory, redis_url, server=server)
    candidate = setting.settings.work_dir / "rounds" / "policy-1" / "version"
    shutil.copytree(setting.store.fetch("policy", 1), candidate)
    model, _ = quick_policy(1)
    save(model, candidate)
    setting.current.reach(replace(setting.current.state, phase="trained"))
    return setting


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (searches_beams, "num_beams=2"),
        (scores_no_numbers, "its logits are not numbers"),
        (lost_weights, "file not fully covered"),
    ],
)
def test_a_round_refuses_a_candidate_that_cannot_be_served(
    tmp_path: Path, redis_url: str, save: Callable[[Any, Path], None], reason: str
) -> None:
    server = fake_server()
    setting = trained(tmp_path, redis_url, server, save)
    assert setting.round().run() == "refused"
    assert setting.store.versions("policy") == [1]
    kept = json.loads((tmp_path / "work" / "refused" / "policy-1" / "reasons.json").read_text())
    (said,) = kept["reasons"]
    assert said.startswith("the policy worker cannot serve the trained policy: ")
    assert reason in said
    refusals = {"model": "policy", "rule": "export"}
    assert setting.metrics.registry.get_sample_value("rewardloop_trainer_refusals_total", refusals) == 1
    assert not server.attempts.count("score_batch")


def test_a_sound_candidate_passes(tmp_path: Path) -> None:
    model, encoder = quick_policy(0)
    model.save_pretrained(tmp_path)
    prove_policy(tmp_path, encoder)


def test_short_memory_is_no_fault_of_the_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rewardloop_trainer.export.policy.load_served", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        prove_policy(tmp_path, quick_policy(0)[1])


def test_short_memory_of_a_cpu_is_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardloop_trainer.export.policy.load_served", lambda *_: torch.empty(2**60))
    with pytest.raises(MemoryError, match="allocate memory"):
        prove_policy(tmp_path, quick_policy(0)[1])
