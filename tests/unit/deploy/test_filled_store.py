"""What `rewardloop up` does with bases and flags of first versions when the store has versions already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rewardloop.formats.store import DataRange, Manifest, ModelStore
from rewardloop_client import AsyncRewardloopClient, VersionInfo
from rewardloop_local.filled_store import refuse_ignored, served_lines
from rewardloop_local.first_versions import publish_first_versions
from rewardloop_local.plan import DeploymentError, DeploymentPlan

_NO_REDIS = "redis://127.0.0.1:1/0"


def _publish(plan: DeploymentPlan, model: str, base: str, **fields: object) -> Manifest:
    manifest = Manifest(model, base=base, **fields)  # type: ignore[arg-type]
    return ModelStore(plan.store).publish(manifest, lambda directory: None)


def _refusal(plan: DeploymentPlan) -> list[str]:
    with pytest.raises(DeploymentError) as refused:
        refuse_ignored(plan, _NO_REDIS, lambda line: None)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(("model", "flag"), [("reward", "--reward-base"), ("policy", "--policy-base")])
def test_a_base_that_a_filled_store_would_ignore_is_refused_with_the_commands_that_publish_it(
    tmp_path: Path, model: str, flag: str
) -> None:
    given = {f"{model}_base": "org/other", "listen": "127.0.0.1:60051"}
    plan = DeploymentPlan(tmp_path, **given)  # type: ignore[arg-type]
    _publish(plan, model, "org/first")
    assert _refusal(plan) == [
        f"{flag} would be ignored: {model} version 1 is live and was made from org/first, not from org/other.",
        f"Leave {flag} out to go on with version 1, or name another --data directory.",
        f"To serve it from {tmp_path}, publish it as version 2: "
        f"rewardloop export --model {model} --base org/other --store {plan.store}",
        f"Then start without {flag}, and make it live: rewardloop models promote {model} 2 --server 127.0.0.1:60051",
    ]


def test_a_version_that_names_no_base_is_no_evidence_of_the_same_one(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="org/other")
    _publish(plan, "reward", "")
    assert "made from a base that its manifest does not name, not from org/other" in _refusal(plan)[0]


def test_the_same_base_by_another_path_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    plan = DeploymentPlan(tmp_path / "data", reward_base="base/", policy_base="org/policy")
    _publish(plan, "reward", str(tmp_path / "base"))
    _publish(plan, "policy", "org/policy")
    refuse_ignored(plan, _NO_REDIS, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        (("--heads", "2"), "has 4 score heads, not 2"),
        (("--max-length=64",), "reads 128 tokens, not 64"),
        (("--max-length", "512"), "reads 128 tokens, not 512"),
    ],
)
def test_flags_of_the_export_that_differ_from_the_live_version_are_refused(
    tmp_path: Path, args: Sequence[str], difference: str
) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="b", export_args=tuple(args))
    _publish(plan, "reward", "b", heads=4, max_length=128)
    lines = _refusal(plan)
    assert lines[0] == f"--reward-base and --export-args would be ignored: reward version 1 is live and {difference}."
    assert lines[2].endswith(f"rewardloop export --model reward --base b --store {plan.store} {' '.join(args)}")


def test_flags_that_fit_the_live_version_start_again_and_are_said_to_have_no_effect(tmp_path: Path) -> None:
    args = ("--heads", "4", "--max-length", "4096")
    plan = DeploymentPlan(tmp_path, reward_base="b", export_args=args)
    notes = {"max_length": "the model reads 128 tokens, which is fewer than the 4,096 of --max-length"}
    _publish(plan, "reward", "b", heads=4, max_length=128, notes=notes)
    said: list[str] = []
    refuse_ignored(plan, _NO_REDIS, said.append)
    assert said == ["reward version 1 is there already: --export-args has no effect any more"]


def test_a_wrong_flag_is_named_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="b", export_args=("--head", "2"))
    _publish(plan, "reward", "b")
    assert _refusal(plan) == ["--export-args is not valid"]
    assert "did you mean --heads?" in capsys.readouterr().err


def test_the_trainers_base_is_refused_too(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, train_args=("--reward.base", "org/other"))
    _publish(plan, "reward", "org/first")
    (line,) = _refusal(plan)
    assert line.startswith("--train-args: --reward.base would be ignored: reward version 1 is live and was made from")
    assert f"rewardloop export --model reward --base org/other --store {plan.store}" in line


async def test_a_policy_base_gets_its_first_version_beside_a_reward_model(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="r", policy_base="p")
    _publish(plan, "reward", "r")
    exported: list[str] = []

    async def run(name: str, module: str, args: Sequence[str]) -> None:
        exported.append(name)

    assert plan.has_policy()
    await publish_first_versions(plan, run, lambda phase: None)
    assert exported == ["export-policy"]


async def test_the_version_that_serves_is_named_with_its_origin(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path)
    learned = DataRange("1-0", "2-0", 1_234)
    live = _publish(plan, "reward", "org/rm", data=learned, created_at="2026-01-02T03:04:05+00:00")
    _publish(plan, "reward", "org/rm")

    class Server(AsyncRewardloopClient):
        def __init__(self) -> None:
            pass

        async def get_version(self, model: str, version: str = "", *, timeout_s: float | None = None) -> VersionInfo:
            assert (model, version) == ("reward", "")
            return VersionInfo(model, "1", live.digest, "active", "", None, {}, live.to_json())

    when = live.created_at[:16].replace("T", " ")
    assert await served_lines(plan, Server()) == [
        f"reward version 1 serves: made from org/rm, trained on 1,234 signals, published {when} UTC; version 2 is "
        "newer and not live ('rewardloop models promote reward 2' makes it live)",
        "no policy serves: the store has none",
    ]


def test_a_base_is_needed_only_until_its_first_version_is_published(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="gone/base", policy_base="new/base")
    assert plan.bases_to_export() == ["gone/base", "new/base"]
    _publish(plan, "reward", "gone/base")
    assert plan.bases_to_export() == ["new/base"]
