"""TLS, mutual TLS and tokens as an operator sets them up, with a real serving process; and no secret is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority, Identity
from support.doors import CallersFile
from support.processes import ServeProcess
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.tokens import token_digest
from rewardloop_client import TLS, NoCredentials, RewardloopClient, WrongCredentials

COMMANDS = ("rewardloop_server.app", "rewardloop_policy.app", "rewardloop_trainer.app", "rewardloop_local.up")


class Secured:
    def __init__(self, directory: Path, redis_url: str) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        made = self.authority.issue("server", names=("127.0.0.1",))
        self.shop: Identity = self.authority.issue("shop", common_name="shop")
        self.callers = CallersFile(directory)
        self.tokens = {role: self.callers.add(role, role) for role in ("score", "admin")}
        publish_sum_version(ModelStore(directory / "models"))
        publish_sum_version(ModelStore(directory / "models"), factor=2.0)
        args = ["--tls-cert", made.cert, "--tls-key", made.key, "--tls-client-ca", self.authority.path]
        args += ["--callers", self.callers.path, "--audit-file", directory / "audit.jsonl", "--log-level", "debug"]
        args += ["--reload-s", "0.1"]
        self.log_path = directory / "serve.log"
        self.serve = ServeProcess(directory / "models", redis_url, self.log_path, [str(arg) for arg in args])

    @property
    def tls(self) -> TLS:
        return TLS(self.authority.path, self.shop.cert, self.shop.key)

    def run(self, *argv: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """`rewardloop ARGV`, with the files of this deployment in its environment."""
        shown = {"CA": self.authority.path, "CLIENT_CERT": self.shop.cert, "CLIENT_KEY": self.shop.key}
        environment = {**os.environ, **{f"REWARDLOOP_{name}": str(value) for name, value in shown.items()}}
        environment["REWARDLOOP_SERVER"] = self.serve.address
        if token is not None:
            environment["REWARDLOOP_TOKEN"] = token
        command = [sys.executable, "-m", "rewardloop_cli.main", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("secured"), redis_url)
    made.serve.start()
    try:
        made.serve.wait_until_serving(tls=made.tls)
        yield made
    finally:
        made.serve.kill()


def test_command_line_shows_certificate_and_token(secured: Secured) -> None:
    scored = secured.run("score", "--prompt", "alpha", "--json", "beta", token=secured.tokens["score"])
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["scores"]
    refused = secured.run("score", "--prompt", "alpha", "beta")
    assert refused.returncode == 2
    assert "NO_CREDENTIALS" in refused.stderr
    refused = secured.run("models", "promote", "reward", "2", token=secured.tokens["score"])
    assert refused.returncode == 2
    assert "NOT_ALLOWED" in refused.stderr
    promoted = secured.run("models", "promote", "reward", "2", token=secured.tokens["admin"])
    assert promoted.returncode == 0, promoted.stderr
    argv = ["--ca", str(secured.authority.path), "score", "--prompt", "a", "b", "--server", secured.serve.address]
    stranger = subprocess.run([sys.executable, "-m", "rewardloop_cli.main", *argv], capture_output=True, timeout=120)
    assert stranger.returncode == 2


def test_bench_shows_its_token(secured: Secured) -> None:
    for rpc in ("score", "batch", "stream"):
        argv = ("bench", "--rpc", rpc, "--seconds", "0.3", "--warm-up", "0", "--callers", "2", "--batch", "4")
        done = secured.run(*argv, token=secured.tokens["score"])
        assert done.returncode == 0, done.stderr


def test_token_made_by_the_command_opens_the_door_at_once(secured: Secured) -> None:
    argv = (
        "token",
        "create",
        "--name",
        "new",
        "--role",
        "score",
        "--days",
        "1",
        "--callers",
        str(secured.callers.path),
    )
    made = secured.run(*argv)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert token not in secured.callers.path.read_text()
    assert token_digest(token) in secured.callers.path.read_text()

    deadline = time.monotonic() + 60
    with RewardloopClient(secured.serve.address, tls=secured.tls, token=token, timeout_s=30) as client:
        while True:
            try:
                client.score("alpha", ["beta"])
                break
            except WrongCredentials:  # until the file was read again
                assert time.monotonic() < deadline
                time.sleep(0.02)
    old = secured.run("score", "--prompt", "alpha", "beta", token=secured.tokens["score"])
    assert old.returncode == 0, old.stderr


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--name", "x", "--role", "root"), "not root"),
        (("--name", "two words", "--role", "score"), "without spaces"),
        (("--name", "x", "--role", "score", "--callers", "/nowhere/callers.toml"), "/nowhere"),
    ],
)
def test_token_create_says_what_is_wrong(argv: tuple[str, ...], says: str, secured: Secured) -> None:
    done = secured.run("token", "create", *argv)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_no_secret_in_log_metrics_or_audit(secured: Secured) -> None:
    with RewardloopClient(secured.serve.address, tls=secured.tls, token="rlt_wrong", max_attempts=1) as client:
        for call in (lambda: client.score("alpha", ["beta"]), lambda: client.promote("reward", "1")):
            with pytest.raises(Exception, match="not known"):
                call()
    nobody = RewardloopClient(secured.serve.address, tls=secured.tls, max_attempts=1)
    with nobody as client, pytest.raises(NoCredentials):
        client.promote("reward", "1")
    with RewardloopClient(secured.serve.address, tls=secured.tls, token=secured.tokens["admin"]) as client:
        client.promote("reward", "1")
    page = f"http://127.0.0.1:{secured.serve.metrics_port}/metrics"
    shown = {
        "log": secured.log_path.read_text(),
        "metrics": urllib.request.urlopen(page, timeout=30).read().decode(),
        "audit": (secured.directory / "audit.jsonl").read_text(),
    }
    assert "WRONG_CREDENTIALS" in shown["audit"]
    assert "rewardloop_certificate_expiry_time_seconds" in shown["metrics"]
    key = (secured.directory / "server.key").read_text().splitlines()[1]
    for secret in (*secured.tokens.values(), *map(token_digest, secured.tokens.values()), "rlt_wrong", key):
        for where, text in shown.items():
            assert secret not in text, where


@pytest.mark.parametrize("module", [*COMMANDS, "rewardloop_cli.main"])
def test_no_secret_in_help(module: str) -> None:
    environment = {**os.environ, "REWARDLOOP_TOKEN": "hush-hush", "REWARDLOOP_POLICY_TOKEN_FILE": "/x"}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "hush-hush" not in done.stdout + done.stderr


def test_no_secret_in_settings_that_are_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardloop_trainer.settings import TrainSettings

    monkeypatch.setenv("REWARDLOOP_TOKEN", "hush-hush")
    settings = TrainSettings()
    assert settings.token_to_show() == "hush-hush"
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "hush" not in text


def test_flags_of_the_calls_are_not_swallowed_before_a_process(secured: Secured) -> None:
    done = secured.run("--ca", "ca.pem", "serve", "--help")
    assert done.returncode == 2
    assert "after serve" in done.stderr
