"""One registry has every online algorithm, what it needs and what its settings are."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS, OnlineAlgorithm
from rewardloop.process.settings import parse
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online.algorithms import algorithm_of
from rewardloop_trainer.policy.online.online_dpo import OnlineDpo
from rewardloop_trainer.policy.online_registry import ONLINE, DapoSettings
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.sft_settings import SftSettings
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.settings import TrainSettings


def beta_of(given: dict[str, Any]) -> float:
    settings = PolicySettings.model_validate({"algorithm": "online-dpo", **given})
    algorithm = algorithm_of("online-dpo", settings.online, settings.dpo)
    assert isinstance(algorithm, OnlineDpo)
    return algorithm.settings.loss.beta


def test_the_registry_has_the_algorithms_that_the_words_name() -> None:
    assert tuple(ONLINE) == ONLINE_ALGORITHMS


@pytest.mark.parametrize("name", ONLINE_ALGORITHMS)
def test_each_algorithm_is_built_with_its_own_settings_and_points_back_to_its_entry(name: OnlineAlgorithm) -> None:
    settings = PolicySettings.model_validate({"algorithm": name, "loss": "ipo", "online": {"clip": 0.3}})
    algorithm = algorithm_of(name, settings.online, settings.dpo)
    assert algorithm.entry is ONLINE[name]
    assert algorithm.settings == ONLINE[name].settings(settings.online, settings.dpo)
    assert type(algorithm).__doc__
    assert ("loss='ipo'" in repr(algorithm.settings)) == (name == "online-dpo")
    assert ("clip=0.3" in repr(algorithm.settings)) == (name != "online-dpo")


def test_dapo_has_the_papers_values_unless_others_are_set() -> None:
    paper = ONLINE["dapo"].settings(PolicySettings().online, PolicySettings().dpo)
    assert isinstance(paper, DapoSettings)
    assert (paper.clip, paper.clip_above, paper.has_kl) == (0.2, 0.28, False)
    given = PolicySettings.model_validate({"online": {"clip_above": 0.2, "beta": 0.05, "max_new_tokens": 8}})
    own = ONLINE["dapo"].settings(given.online, given.dpo)
    assert isinstance(own, DapoSettings)
    assert (own.clip_above, own.has_kl, own.overlong_tokens) == (0.2, True, 8)


@pytest.mark.parametrize("name", ONLINE_ALGORITHMS)
def test_algorithms_that_compare_responses_refuse_one_response_a_prompt(name: OnlineAlgorithm) -> None:
    given = {"algorithm": name, "online": {"responses": 1}}
    if ONLINE[name].least_responses == 1:
        assert PolicySettings.model_validate(given).online.responses == 1
        return
    with pytest.raises(ValueError, match=r"online\.responses must be 2 or more"):
        PolicySettings.model_validate(given)


@pytest.mark.parametrize(
    ("given", "beta"),
    [
        ({}, 0.1),
        ({"beta": 0.7}, 0.7),
        ({"online": {"beta": 0.3}}, 0.3),
        ({"beta": 0.7, "online": {"beta": 0.3}}, 0.3),
        ({"beta": 0.7, "online": {"beta": 0.05}}, 0.05),  # set, though it is what the default is
        ({"beta": 0.7, "online": {"beta": 0.0}}, 0.7),  # no beta for DPO
        ({"beta": 0.7, "online": {"steps": 3}}, 0.7),
    ],
)
def test_online_dpo_takes_the_beta_of_the_online_settings_where_it_was_set_and_else_that_of_dpo(
    given: dict[str, Any], beta: float
) -> None:
    assert beta_of(given) == beta


def test_settings_and_registry_import_no_torch() -> None:
    code = "import sys, rewardloop_trainer.policy.settings; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given", ["(0.0001,)", "(0.5, 1.0)", "0.5,1.0", ["(0.5", "1.0)"], (0.5, 1.0), [0.5]])
def test_temperatures_may_be_given_as_help_prints_them(given: Any) -> None:
    settings = PolicySettings.model_validate({"online": {"temperatures": given}})
    assert settings.online.temperatures in {(0.0001,), (0.5, 1.0), (0.5,)}


@pytest.mark.parametrize("given", ["nan", "inf", "(1.0, nan)"])
def test_temperatures_on_the_command_line_that_are_not_finite_are_refused_in_one_line(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(TrainSettings, ["--policy.online.temperatures", given], "train")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finite" in line


@pytest.mark.parametrize("given", ["()", "", [], "(warm,)", [-1.0], [0], [1.0, math.nan], "inf"])
def test_temperatures_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="temperatures"):
        PolicySettings.model_validate({"online": {"temperatures": given}})


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        (RewardTraining, [5e-5, 1e-5, 5e-6]),
        (SftSettings, [2e-5, 2e-5, 1e-5]),
        (DpoSettings, [1e-5, 1e-5, 1e-6]),
        (KtoSettings, [1e-5, 1e-5, 1e-6]),
        (OnlineSettings, [1e-6, 1e-6, 1e-6]),
    ],
)
def test_rates_are_usual_ones_for_what_learns_unless_they_are_set(kind: Any, rates: list[float]) -> None:
    sizes = (3 * 10**7, 4 * 10**8, 8 * 10**9)
    assert [kind().rate_for(size, are_adapters=False) for size in sizes] == rates
    assert {kind().rate_for(size, are_adapters=True) for size in sizes} == {1e-4}
    chosen = kind.model_validate({"learning_rate": 3e-5})
    assert {chosen.rate_for(size, are_adapters=adapters) for size in sizes for adapters in (False, True)} == {3e-5}
    said = kind.model_fields["learning_rate"].description
    assert all(f"{rate:.0e}".replace("e-0", "e-") in said for rate in (*rates, 1e-4))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"algorithm": "ppo", "online": {"kl_target": 1.0, "beta": 0.0}}, r"online\.beta, which must then be above 0"),
        ({"algorithm": "online-dpo", "online": {"kl_target": 1.0}}, "online-dpo has none there"),
        ({"algorithm": "dapo", "online": {"kl_target": 1.0}}, "dapo has none there"),
    ],
)
def test_a_target_that_cannot_steer_anything_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PolicySettings.model_validate(given)


def test_beta_adapts_within_a_run_whatever_its_length() -> None:
    for steps in (10, 50, 1_000):
        assert OnlineSettings.model_validate({"steps": steps}).beta_horizon == steps * 32 * 4 / 10
    assert OnlineSettings.model_validate({"kl_horizon": 7.0}).beta_horizon == 7.0
