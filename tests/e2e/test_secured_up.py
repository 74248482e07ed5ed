"""`rewardloop up` with TLS and tokens: its processes know one another, and nobody else comes in by their ports."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.certificates import Authority
from support.doors import CallersFile, opened
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.processes import free_port
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import TLS, AsyncRewardloopClient, NoCredentials, RewardloopClient, Unreachable
from rewardloop_local.deployment import Deployment
from rewardloop_local.plan import DeploymentPlan
from rewardloop_local.security import Security
from rewardloop_local.up import UpSettings
from rewardloop_trainer.server_access import open_client
from rewardloop_trainer.settings import TrainSettings

pytestmark = pytest.mark.long


async def test_processes_of_a_deployment_let_one_another_in_and_nobody_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    publish_sum_version(ModelStore(data / "models"))
    publish_policy(ModelStore(data / "models"), small_llama(), byte_encoder())
    authority = Authority(tmp_path)
    made = authority.issue("server", names=("127.0.0.1",))
    callers = CallersFile(tmp_path)
    shop = callers.add("shop", "score", "generate")
    (tmp_path / "token").write_text(callers.add("deployment", "score", "generate", "admin"))
    security = Security(
        tls_cert=made.cert,
        tls_key=made.key,
        callers=callers.path,
        ca=authority.path,
        token_file=tmp_path / "token",
    )
    ports = [free_port() for _ in range(5)]
    plan = DeploymentPlan(
        data=data,
        listen=f"127.0.0.1:{ports[0]}",
        policy_listen=f"127.0.0.1:{ports[1]}",
        metrics_port=ports[2],
        trainer_metrics_port=ports[3],
        policy_metrics_port=ports[4],
        serve_args=("--intra-op-threads", "1", "--no-spin"),
        security=security,
    )
    deployment = Deployment(plan, on_phase=lambda _: None)
    tls = TLS(authority.path)
    try:
        await deployment.start()
        async with AsyncRewardloopClient(plan.listen, tls=tls, token=shop, timeout_s=60) as client:
            assert (await client.score("alpha", ["beta"])).values
            assert (await client.generate("alpha", candidates=2)).generation_id
        for address in (plan.listen, plan.policy_listen):
            async with AsyncRewardloopClient(address, tls=tls, max_attempts=1, timeout_s=30) as client:
                with pytest.raises(NoCredentials):
                    await client.generate("alpha")
            async with AsyncRewardloopClient(address, token=shop, max_attempts=1, timeout_s=5) as client:
                with pytest.raises(Unreachable):
                    await client.generate("alpha")
        assert all(process.restarts == 0 for process in deployment.supervisor.processes)
    finally:
        await deployment.stop()


async def test_trainer_shows_its_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = authority.issue("server", names=("rewardloop.internal",))
    callers = CallersFile(tmp_path)
    (tmp_path / "token").write_text(callers.add("trainer", "score", "admin"))
    async with opened(tls_cert=made.cert, tls_key=made.key, callers=callers.path) as door:
        settings = TrainSettings(
            ca=authority.path, server_name="rewardloop.internal", token_file=tmp_path / "token", server=door.address
        )

        def ask(client: RewardloopClient) -> None:
            with client:
                client.score("p", ["a"])
                client.promote("reward", "1")

        await asyncio.to_thread(ask, open_client(settings, settings.server, lane="trainer"))
        assert door.behind.calls == ["Score", "Promote"]


def test_settings_of_up_reach_every_process() -> None:
    settings = UpSettings(
        tls_cert=Path("c"), tls_key=Path("k"), callers=Path("f"), ca=Path("a"), token_file=Path("t"), server_name="n"
    )
    security = Security.of(settings)
    assert security.door_args("127.0.0.1:50051") == ["--tls-cert", "c", "--tls-key", "k", "--callers", "f"]
    assert security.access_args() == ["--ca", "a", "--server-name", "n", "--token-file", "t"]
    policy = security.access_args("policy-")
    assert policy == ["--policy-ca", "a", "--policy-server-name", "n", "--policy-token-file", "t"]


@pytest.mark.parametrize(
    ("given", "lacks"),
    [({"tls_cert": Path("c"), "tls_key": Path("k")}, "needs ca"), ({"callers": Path("f")}, "needs token_file")],
)
def test_up_whose_processes_would_not_let_one_another_in_is_refused(given: dict[str, Path], lacks: str) -> None:
    with pytest.raises(ValueError, match=lacks):
        UpSettings(**given)
