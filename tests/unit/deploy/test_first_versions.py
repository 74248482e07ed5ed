"""The flags with which the first versions are exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop.process.settings import parse
from rewardloop_local.first_versions import publish_first_versions
from rewardloop_local.plan import DeploymentError, DeploymentPlan
from rewardloop_trainer.commands.export_settings import ExportSettings


async def _exports(plan: DeploymentPlan) -> list[ExportSettings]:
    found: list[ExportSettings] = []

    async def run(name: str, module: str, args: Sequence[str]) -> None:
        found.append(parse(ExportSettings, args, name))

    await publish_first_versions(plan, run, lambda phase: None)
    return found


async def test_variables_of_the_environment_change_no_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="r", policy_base="p", export_args=("--heads", "3", "--new-heads"))
    expected = await _exports(plan)
    variables = {"MODEL": "policy", "BASE": "x", "STORE": "y", "HEADS": "2", "SEED": "7", "MAX_LENGTH": "16"}
    variables |= {"ANCHORS": "a", "GATE_PAIRS": "g", "PRECISION": "int8", "POOLING": "cls", "LAYOUT": "plain"}
    variables |= {"LABEL_WEIGHTS": "a=1", "STEP_SCORES": "last", "STEP_TOKEN": "x", "TRUST_REMOTE_CODE": "true"}
    for name, value in {**variables, "NEW_HEADS": "true", "ADAPTERS": "none"}.items():
        monkeypatch.setenv(f"REWARDLOOP_{name}", value)
    reward, policy = await _exports(plan)
    assert [reward, policy] == expected
    assert (reward.model, reward.base, reward.heads, reward.new_heads) == ("reward", "r", 3, True)
    assert (policy.model, policy.base, policy.heads, policy.new_heads) == ("policy", "p", 4, False)


async def test_the_signing_key_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDLOOP_SIGNING_KEY", "key.pem")
    exports = await _exports(DeploymentPlan(tmp_path, reward_base="r", policy_base="p"))
    assert [each.signing_key for each in exports] == ["key.pem"] * 2


async def test_what_an_export_chose_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    plan = DeploymentPlan(tmp_path, reward_base="r")

    async def run(name: str, module: str, args: Sequence[str]) -> None:
        notes = {"max_length": "2,048, of the 32,768 that the base reads", "anchors": "96 shipped"}
        ModelStore(plan.store).publish(Manifest("reward", notes=notes), lambda directory: None)

    await publish_first_versions(plan, run, said.append)
    assert said == [
        "exporting reward version 1",
        "reward version 1: The scale of scores is fixed on these anchors: 96 shipped.",
        "reward version 1: Prompt and response together have at most these tokens: 2,048, of the 32,768 that the base "
        "reads.",
    ]


@pytest.mark.parametrize(
    ("model", "said", "advice"),
    [
        (
            "reward",
            "trained heads; --new-heads (reward.new_heads of the trainer) drops it",
            "--export-args=--new-heads",
        ),
        ("reward", "it differs; --layout plain takes a plain layout", "--export-args='--layout plain'"),
        ("policy", "it differs; --layout plain takes a plain layout", "--policy-export-args='--layout plain'"),
        ("reward", "--label-weights NAME=WEIGHT,... says it", "--export-args='--label-weights NAME=WEIGHT,...'"),
    ],
)
async def test_advice_of_an_export_is_given_as_up_takes_it(tmp_path: Path, model: str, said: str, advice: str) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="r", policy_base="p")
    if model == "policy":
        ModelStore(plan.store).publish(Manifest("reward"), lambda directory: None)

    async def run(name: str, module: str, args: Sequence[str]) -> None:
        raise DeploymentError(f"{name} failed: {said}")

    with pytest.raises(DeploymentError) as failed:
        await publish_first_versions(plan, run, lambda phase: None)
    assert str(failed.value).splitlines()[1:] == [f"give it to 'rewardloop up' as {advice}"]


async def test_a_warning_is_said_last(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, reward_base="r")
    said: list[str] = []

    async def run(name: str, module: str, args: Sequence[str]) -> None:
        notes = {UNTRAINED_HEADS_NOTE: "the heads are random", "parity": "equal"}
        ModelStore(plan.store).publish(Manifest("reward", notes=notes), lambda directory: None)

    await publish_first_versions(plan, run, said.append)
    assert said[1:] == ["reward version 1: Parity: equal.", "reward version 1: WARNING: the heads are random."]
