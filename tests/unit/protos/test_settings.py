"""How processes read their settings: help, unknown names, and what an error says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from rewardloop.process.process_table import PROCESSES, Process
from rewardloop.process.setting_names import environment_names, nearest, settings_of
from rewardloop.process.settings import InvalidSettings, ProcessSettings, parse
from rewardloop.process.settings_origin import MASK, NOT_SET, effective_settings

EVERY = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)


class Inner(BaseModel):
    """How it learns. Second sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(0.1, gt=0, description="step length")
    rates: tuple[float, ...] = (1.0,)


class Small(ProcessSettings):
    """Does a small thing."""

    basic_settings = ("metrics_port", "reward.learning_rate")
    setting_groups = (("metrics_port", "Pages"), ("once", "Ending"))

    metrics_port: int = Field(1, ge=0, description="port of the page")
    url: str = "redis://127.0.0.1:1"
    secret: SecretStr | None = None
    once: bool = False
    mode: Literal["a", "b"] = "a"
    where: Path | None = None
    train_args: str = ""
    reward: Inner = Inner()


class Needy(ProcessSettings):
    base: str
    seed: int = 0


def _complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(Small, argv, "small")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def _help(capsys: pytest.CaptureFixture[str], process: Process, flag: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(process.settings_class(), [flag], f"rewardloop {process.name}")
    assert stopped.value.code == 0
    return capsys.readouterr().out


@EVERY
def test_help_lists_some_settings_and_says_how_many_there_are(
    capsys: pytest.CaptureFixture[str], process: Process
) -> None:
    settings = settings_of(process.settings_class())
    text = _help(capsys, process, "--help")
    listed = [setting for setting in settings if f"\n  {setting.flags}" in text]
    assert listed == [setting for setting in settings if setting.is_basic]
    assert len(process.settings_class().basic_settings) == len(listed)
    assert min(5, len(settings)) <= len(listed) <= 12
    assert text.splitlines()[-1] == f"`--help-all` shows all {len(settings)} settings."


@EVERY
def test_help_all_lists_every_setting_once_under_a_title(capsys: pytest.CaptureFixture[str], process: Process) -> None:
    settings = settings_of(process.settings_class())
    lines = _help(capsys, process, "--help-all").splitlines()
    starts = [line.strip().split("  ")[0] for line in lines if line.startswith("  --")]
    assert starts == ["--config FILE", *(setting.flags for setting in _by_group(settings))]


@EVERY
def test_every_required_setting_is_in_the_short_help(process: Process) -> None:
    assert [s.key for s in settings_of(process.settings_class()) if s.field.is_required() and not s.is_basic] == []


@EVERY
def test_titles_name_settings_that_exist(process: Process) -> None:
    declared = {name for each in process.settings_class().__mro__ for name, _ in vars(each).get("setting_groups", ())}
    assert declared <= set(process.settings_class().model_fields)


@EVERY
def test_each_process_has_the_module_that_the_table_names(process: Process) -> None:
    assert importlib.util.find_spec(process.module) is not None


def _by_group(settings: list) -> list:
    groups = list(dict.fromkeys(setting.group for setting in settings))
    return sorted(settings, key=lambda setting: groups.index(setting.group))


def test_a_wrong_value_is_complained_of_with_every_name_of_the_setting(capsys: pytest.CaptureFixture[str]) -> None:
    line = _complaint(capsys, "--reward.learning-rate", "-1")
    assert "reward.learning_rate: Input should be greater than 0" in line
    assert "flag --reward.learning-rate," in line
    assert "environment variable REWARDLOOP_REWARD__LEARNING_RATE," in line
    assert "TOML key reward.learning_rate)" in line


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("metrics-port = 3\n", "metrics-port: unknown setting; did you mean metrics_port?"),
        ("[reward]\nlearning-rate = 3\n", "reward.learning-rate: unknown setting; did you mean reward.learning_rate?"),
        ("metrics_prot = 3\n", "did you mean metrics_port?"),
        ("zebra = 3\n", "zebra: unknown setting\n"),
        ("[Reward]\nlearning_rate = 3\n", "Reward: unknown setting; did you mean reward?"),
        ("METRICS_PORT = 3\n", "METRICS_PORT: unknown setting; did you mean metrics_port?"),
        ("[reward]\nRATES = [3.0]\n", "reward.RATES: unknown setting; did you mean reward.rates?"),
        ('_env_prefix = "OTHER_"\n', "_env_prefix: unknown setting"),
        ("_case_sensitive = true\n", "_case_sensitive: unknown setting"),
        ("_cli_settings_source = 3\n", "_cli_settings_source: unknown setting"),
        ("__pydantic_self__ = 3\n", "__pydantic_self__: unknown setting"),
        ("self = 3\n", "self: unknown setting"),
        ("reward = 3\n", "reward: Input should be a valid dictionary"),
    ],
)
def test_an_unknown_key_of_the_file_is_answered_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toml: str, named: str
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(toml)
    assert named in _complaint(capsys, "--config", str(file))


def test_a_file_that_is_not_there_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.toml"
    assert _complaint(capsys, "--config", str(file)) == f"small: {file}: No such file or directory\n"


def test_the_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_bytes('url = "é"\n'.encode())
    code = (
        "from rewardloop.process.settings import ProcessSettings, parse\n"
        "class Small(ProcessSettings):\n    url: str\n"
        "print(ascii(parse(Small, ['--config', 'small.toml'], 'small').url))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "'\\xe9'\n", done.stderr


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--metrics-prot", "did you mean --metrics-port?"),
        ("--reward.learning_rate", "did you mean --reward.learning-rate?"),
        ("--no-onces", "did you mean --no-once?"),
        ("--zebra", "--help-all lists every flag"),
    ],
)
def test_an_unknown_flag_is_refused_and_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], flag: str, named: str
) -> None:
    assert named in _complaint(capsys, f"{flag}=3")


@pytest.mark.parametrize(
    "argv",
    [
        ["SEKRIT"],
        ["--metrics-port", "1", "SEK --RIT"],
        ["--secret", "SEK", "RIT"],
        ["--secrt=SEK --RIT"],
        ["--secrt SEKRIT"],
        ["--once=SEKRIT"],
        ["-SEKRIT"],
    ],
)
def test_an_argument_that_may_be_a_secret_is_not_quoted(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    line = _complaint(capsys, *argv)
    assert "SEK" not in line
    assert "RIT" not in line


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("REWARDLOOP_REWARD_LEARNING_RATE", "did you mean REWARDLOOP_REWARD__LEARNING_RATE?"),
        ("REWARDLOOP_METRICS_PROT", "did you mean REWARDLOOP_METRICS_PORT?"),
        ("rewardloop_metric_port", "did you mean REWARDLOOP_METRICS_PORT?"),
        ("REWARDLOOP_ZEBRA", "is ignored\n"),
    ],
)
def test_a_variable_that_is_no_setting_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, named: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert parse(Small, [], "small") == Small()
    (line,) = capsys.readouterr().err.splitlines(keepends=True)
    assert line.startswith(f"small: the environment variable {name} is no setting of rewardloop")
    assert named in line


def test_an_unknown_variable_of_a_group_is_refused_and_not_said_to_be_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REWARDLOOP_REWARD__LEARNIN_RATE", "1")
    with pytest.raises(InvalidSettings) as stopped:
        parse(Small, [], "small")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "small: the environment variable REWARDLOOP_REWARD__LEARNIN_RATE is no setting of rewardloop; "
        "did you mean REWARDLOOP_REWARD__LEARNING_RATE?",
        "small: reward.learnin_rate: unknown setting; did you mean reward.learning_rate?",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["REWARDLOOP_TOKEN", "REWARDLOOP_SERVER", "REWARDLOOP_POLICY__ONLINE__STEPS", "REWARDLOOP_QUEUE_ROWS"],
        ["REWARDLOOP_REQUIRE_TOOLS", "REWARDLOOP_CONTAINER_STEPS", "REWARDLOOP_TEST_SEED"],
        ["REWARDLOOP_SERVICE_HOST", "REWARDLOOP_SERVICE_PORT", "REWARDLOOP_PORT", "REWARDLOOP_PORT_50051_TCP_ADDR"],
        ["REWARDLOOP_REDIS_SERVICE_HOST", "REWARDLOOP_REDIS_SERVICE_PORT_TLS", "REWARDLOOP_REDIS_PORT"],
        ["REWARDLOOP_REWARD", "OTHER_REWARD_LEARNING_RATE"],
    ],
)
def test_a_variable_of_another_process_of_the_tests_or_of_kubernetes_is_no_concern(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    for name in names:
        monkeypatch.setenv(name, "{}")
    parse(Small, [], "small")
    assert capsys.readouterr().err == ""


def test_a_list_in_the_environment_that_is_no_json_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REWARDLOOP_REWARD__RATES", "abc")
    assert "REWARDLOOP_REWARD__RATES must hold JSON" in _complaint(capsys)


def test_the_variables_of_a_class_are_those_that_pydantic_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_names(Small) >= {"REWARDLOOP_METRICS_PORT", "REWARDLOOP_REWARD", "REWARDLOOP_REWARD__RATES"}
    monkeypatch.setenv("REWARDLOOP_REWARD", '{"learning_rate": 3}')
    monkeypatch.setenv("REWARDLOOP_ONCE", "true")
    assert (Small().reward.learning_rate, Small().once) == (3, True)


def test_the_nearest_name_is_none_when_nothing_is_near() -> None:
    assert nearest("reward.lr", ["reward.delta", "reward.seed"]) is None
    assert nearest("metrics-port", ["metrics_host", "metrics_port"]) == "metrics_port"


def test_each_value_is_shown_with_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.toml"
    file.write_text('mode = "b"\nmetrics_port = 7\n[reward]\nrates = [2.0]\n')
    monkeypatch.setenv("REWARDLOOP_METRICS_PORT", "8")
    monkeypatch.setenv("REWARDLOOP_REWARD", '{"learning_rate": 0.5}')
    found = {
        each.setting.key: (each.value, each.origin, each.is_changed)
        for each in effective_settings(Small, ["--config", str(file), "--once", "--where", "x"], "small")
    }
    assert found == {
        "metrics_port": (8, "environment REWARDLOOP_METRICS_PORT", True),
        "url": ("redis://127.0.0.1:1", "default", False),
        "secret": (None, "default", False),
        "once": (True, "flag --once", True),
        "mode": ("b", f"file {file}", True),
        "where": ("x", "flag --where", True),
        "train_args": ("", "default", False),
        "reward.learning_rate": (0.5, "environment REWARDLOOP_REWARD", True),
        "reward.rates": ([2.0], f"file {file}", True),
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pa55@h:1/0", f"redis://user:{MASK}@h:1/0"),
        (
            "redis+sentinel://:pa55@a:1,b:2/s?sentinel_password=pa55",
            f"redis+sentinel://:{MASK}@a:1,b:2/s?sentinel_password={MASK}",
        ),
        ("--seed 3 --policy-token pa55 --token=pa55", f"--seed 3 --policy-token {MASK} --token={MASK}"),
        ("--token-file f --seed 3", "--token-file f --seed 3"),
    ],
)
def test_secrets_are_masked(url: str, shown: str) -> None:
    found = {each.setting.key: each for each in effective_settings(Small, ["--url", url, "--secret", "pa55"], "small")}
    assert (found["url"].value, found["secret"].value) == (shown, MASK)
    assert found["url"].is_changed


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("--seed 3 --token  SEKRIT", f"--seed 3 --token {MASK}"),
        ("--token\tSEKRIT --seed 3", f"--token {MASK} --seed 3"),
        ('"--token" SEKRIT', f"--token {MASK}"),
        ("--to'ken' SEKRIT", f"--token {MASK}"),
        ("-'-token' SEKRIT", f"--token {MASK}"),
        ("--token 'SEK RIT' --once", f"--token {MASK} --once"),
        ("--policy-token='SEK RIT'", f"--policy-token={MASK}"),
        ("--token= SEKRIT", f"--token= {MASK}"),
        ("--token 'SEK RIT", MASK),
        ("-\"-token' SEKRIT", MASK),
        ("--redis-url 'redis://:SEK RIT@h/0' --once", f"--redis-url redis://:{MASK}@h/0 --once"),
        ("--redis-url=redis://:SEK@RIT@h/0", f"--redis-url=redis://:{MASK}@h/0"),
        ("--work-dir 'a b' --max-new-tokens 3", "--work-dir 'a b' --max-new-tokens 3"),
    ],
)
def test_secrets_in_a_string_of_flags_are_masked_as_a_shell_splits_it(flags: str, shown: str) -> None:
    found = {each.setting.key: each for each in effective_settings(Small, [f"--train-args={flags}"], "small")}
    assert found["train_args"].value == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:SEK@RIT@host/0", f"redis://:{MASK}@host/0"),
        ("redis://u:SEK/RIT@host/0", f"redis://u:{MASK}@host/0"),
        ("redis://u:SEK?RIT@host/0", f"redis://u:{MASK}@host/0"),
        ("redis://u:SEK#RIT@host/0", f"redis://u:{MASK}@host/0"),
        ("redis://u:SEK --RIT@host/0", f"redis://u:{MASK}@host/0"),
        ("redis://u:SEK://RIT@host/0", f"redis://u:{MASK}@host/0"),
        ("redis:SEKRIT@host", f"redis:{MASK}@host"),
        ("redis+sentinel://a/s?sentinel_password=SEK&RIT", f"redis+sentinel://a/s?sentinel_password={MASK}"),
        ("redis+sentinel://a/s?sentinel_password=SEK@RIT", f"redis+sentinel://a/s?sentinel_password={MASK}"),
        ("redis+sentinel://a:1/s?sentinel_password=SEK@RIT", f"redis+sentinel://a:{MASK}"),
        ("redis://u:SEK?token=RIT@host", f"redis://u:{MASK}"),
        ("redis://SEKRIT@host", f"redis://{MASK}@host"),
        ("redis://SEK/RIT@host", f"redis://{MASK}@host"),
        ("redis://SEKRIT@a/s?sentinel_password=SEKRIT", f"redis://{MASK}@a/s?sentinel_password={MASK}"),
        ("https://SEKRIT@host/a@b?c=d@e", f"https://{MASK}@host/a@b?c=d@e"),
        ("redis://SEKRIT@host:6379/0", f"redis://{MASK}@host:6379/0"),
        ("redis://SEK@RIT@host:6379/0", f"redis://{MASK}@host:6379/0"),
        ("redis://SEK@RIT:x@host/0", f"redis://{MASK}:{MASK}@host/0"),
        ("redis+cluster://SEKRIT@a:1,b:2", f"redis+cluster://{MASK}@a:1,b:2"),
        ("rediss+sentinel://SEKRIT@[::1]:1/s", f"rediss+sentinel://{MASK}@[::1]:1/s"),
        ("unix:///run/x?password=SEK:RIT@a", f"unix:///run/x?password={MASK}"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("[::1]:50051", "[::1]:50051"),
    ],
)
def test_a_password_is_masked_up_to_the_last_at_sign(url: str, shown: str) -> None:
    found = {each.setting.key: each for each in effective_settings(Small, ["--url", url], "small")}
    assert found["url"].value == shown


def test_what_is_required_and_not_set_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    base, seed = effective_settings(Needy, ["--seed", "4"], "needy")
    assert (base.value, base.origin) == (None, NOT_SET)
    assert (seed.value, seed.origin) == ("4", "flag --seed")
    with pytest.raises(InvalidSettings):
        effective_settings(Needy, ["--seed", "x"], "needy")
    assert "seed" in capsys.readouterr().err
