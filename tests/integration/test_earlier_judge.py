"""The reward version before the live one judges the policy that the live one trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.policy_versions import FEW_CHARACTERS
from support.tiny_encoder import save_tiny_encoder

from rewardloop.formats.manifest import Manifest
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop_trainer.commands.export import main as export
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.rounds.judges.earlier_judge import earlier_judge
from rewardloop_trainer.settings import TrainSettings

PROMPT = (Turn("user", "q"),)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reward versions with unlike heads, of which the second came from the first."""
    directory = tmp_path_factory.mktemp("exported")
    store = ModelStore(directory / "models")
    for seed in (1, 2):
        base = save_tiny_encoder(directory / f"base{seed}", seed, FEW_CHARACTERS)
        assert export(["--base", str(base), "--store", store.url, "--heads", "2"]) == 0
    second = store.fetch("reward", "2")

    def write(directory: Path) -> None:
        shutil.copytree(second, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))

    store.publish(replace(store.manifest("reward", "2"), parent="1"), write)
    return directory / "models"


@pytest.fixture
def store(tmp_path: Path, exported: Path) -> ModelStore:
    shutil.copytree(exported, tmp_path / "models")
    return ModelStore(tmp_path / "models")


def judge(store: ModelStore, live: str | None, *, taught_by: str = "", **policy: object) -> Scorer | None:
    """The judge of a candidate whose live policy learned from these reward versions."""

    def write(directory: Path) -> None:
        (directory / "weights").write_text("")

    live_policy = store.publish(Manifest("policy", notes={"taught_by": taught_by} if taught_by else {}), write)
    settings = TrainSettings(store=store.url, policy=policy)  # type: ignore[arg-type]
    return earlier_judge(settings, store, live, live_policy.version)


def scores_by(scorer: Scorer | None) -> list[float | None]:
    assert scorer is not None
    (scores,) = scorer([PROMPT], [["a", "bbbb", ""]])
    return [None if score is None else round(score, 6) for score in scores]


def test_the_parent_of_the_live_version_scores(store: ModelStore) -> None:
    scorer = judge(store, "3")
    assert scorer is not None
    (scores,) = scorer([PROMPT], [["a", "bbbb", ""]])
    assert scores[0] is not None
    assert scores[0] != scores[1]
    assert scores[2] is None


def test_a_version_that_taught_the_live_policy_is_passed_over(store: ModelStore) -> None:
    def write(directory: Path) -> None:
        third = store.fetch("reward", "3")
        shutil.copytree(third, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))

    store.publish(replace(store.manifest("reward", "3"), parent="3"), write)
    by_first, by_third = (scores_by(judge(store, live)) for live in ("3", "4"))
    assert by_first != by_third
    assert scores_by(judge(store, "4", taught_by="3")) == by_first
    assert judge(store, "4", taught_by="1, 3") is None
    assert judge(store, "3", taught_by="1") is None


@pytest.mark.parametrize(
    ("live", "policy"),
    [
        (None, {}),
        ("2", {}),
        ("9", {}),
        ("3", {"gate": {"earlier_version": False}}),
        ("3", {"reward_model": "helpful"}),
    ],
)
def test_nobody_judges_without_such_a_version_or_if_it_is_not_wanted(
    store: ModelStore, live: str | None, policy: dict[str, object]
) -> None:
    assert judge(store, live, **policy) is None


def test_a_parent_that_was_deleted_does_not_judge(store: ModelStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "models/reward/1")
    assert judge(store, "3") is None
