"""TLS and mutual TLS: who connects, who does not, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from support.certificates import Authority, Identity
from support.doors import METHODS, CallersFile, call, opened

from rewardloop_client import TLS, InvalidAccess, NoCredentials, NotAllowed, RewardloopClient, Unreachable
from rewardloop_server.doors.certificates import CertificateFiles
from rewardloop_server.doors.reload import BadFile

SCORE = METHODS[0]
LOCAL = ("localhost", "127.0.0.1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Identity:
    return authority.issue("server", names=LOCAL)


async def score(address: str, tls: TLS | bool, **settings: Any) -> None:
    """Raises RewardloopError."""

    def ask() -> None:
        with RewardloopClient(address, tls=tls, **{"timeout_s": 20.0, "max_attempts": 1, **settings}) as client:
            client.score("p", ["a"])

    await asyncio.to_thread(ask)


async def test_client_of_the_authority_is_served(authority: Authority, server: Identity) -> None:
    async with opened(tls_cert=server.cert, tls_key=server.key) as door:
        await score(door.address, TLS(authority.path))
        await score(f"localhost:{door.port}", TLS(authority.path))
        expiry = server.certificate.not_valid_after_utc.timestamp()
        assert door.figure("rewardloop_certificate_expiry_time_seconds") == expiry


async def test_plaintext_is_not_served_on_a_port_of_tls(server: Identity) -> None:
    async with opened(tls_cert=server.cert, tls_key=server.key) as door:
        with pytest.raises(Unreachable):
            await score(door.address, False, timeout_s=3.0)


async def test_other_authority_is_not_believed(tmp_path: Path, server: Identity) -> None:
    other = Authority(tmp_path, "other")
    async with opened(tls_cert=server.cert, tls_key=server.key) as door:
        with pytest.raises(Unreachable):
            await score(door.address, TLS(other.path))
        with pytest.raises(Unreachable):
            await score(door.address, True)
        assert door.behind.calls == []


async def test_other_host_name_is_not_believed_unless_asked_for(authority: Authority) -> None:
    named = authority.issue("server", names=("rewardloop.internal",))
    async with opened(tls_cert=named.cert, tls_key=named.key) as door:
        with pytest.raises(Unreachable):
            await score(door.address, TLS(authority.path))
        await score(door.address, TLS(authority.path, server_name="rewardloop.internal"))


async def test_certificate_that_expires_meanwhile_is_refused_by_clients(authority: Authority) -> None:
    brief = authority.issue("server", names=LOCAL, valid_for=timedelta(seconds=4))
    async with opened(tls_cert=brief.cert, tls_key=brief.key) as door:

        async def until_refused() -> None:
            while True:  # each time over a new connection
                await score(door.address, TLS(authority.path))
                await asyncio.sleep(0.2)

        with pytest.raises(Unreachable):
            await asyncio.wait_for(until_refused(), 60)


async def test_mutual_tls_serves_those_with_a_certificate_alone(
    tmp_path: Path, authority: Authority, server: Identity
) -> None:
    shop = authority.issue("shop", common_name="shop")
    expired = authority.issue("expired", common_name="shop", valid_for=timedelta(hours=-1))
    stranger = Authority(tmp_path, "other").issue("stranger", common_name="shop")
    async with opened(tls_cert=server.cert, tls_key=server.key, tls_client_ca=authority.path) as door:
        await score(door.address, TLS(authority.path, shop.cert, shop.key))
        for tls in (
            TLS(authority.path),
            TLS(authority.path, stranger.cert, stranger.key),
            TLS(authority.path, expired.cert, expired.key),
        ):
            with pytest.raises(Unreachable):
                await score(door.address, tls)
        assert len(door.behind.calls) == 1


@pytest.mark.parametrize("kind", ["common name", "dns", "spiffe"])
async def test_name_in_a_client_certificate_has_roles(
    kind: str, tmp_path: Path, authority: Authority, server: Identity
) -> None:
    name = {"common name": "ops", "dns": "ops.internal", "spiffe": "spiffe://example.org/ops"}[kind]
    if kind == "common name":
        shown = authority.issue("ops", common_name=name)
    else:
        shown = authority.issue("ops", common_name="whatever", names=("first.internal", name))
    callers = CallersFile(tmp_path)
    callers.add_certificate("operators", name, "admin")
    token = callers.add("shop", "score")
    audit = tmp_path / "audit.jsonl"
    door_of = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.path}
    async with opened(callers=callers.path, audit_file=audit, **door_of) as door:
        tls = TLS(authority.path, shown.cert, shown.key)

        def as_operator() -> None:
            with RewardloopClient(door.address, tls=tls, timeout_s=20.0, max_attempts=1) as client:
                client.promote("reward", "2")
                with pytest.raises(NotAllowed):
                    client.score("p", ["a"])

        await asyncio.to_thread(as_operator)
        await score(door.address, tls, token=token)  # a token goes first
        assert door.behind.calls == ["Promote", "Score"]
        other = authority.issue("other", common_name="nobody")
        with pytest.raises(NoCredentials):
            await score(door.address, TLS(authority.path, other.cert, other.key))
        assert '"caller": "operators"' in audit.read_text()


async def test_new_certificate_is_taken_without_a_restart(tmp_path: Path, authority: Authority) -> None:
    first = authority.issue("server", names=LOCAL)
    async with opened(tls_cert=first.cert, tls_key=first.key) as door:
        credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
        async with grpc.aio.secure_channel(door.address, credentials) as before:
            assert (await call(before, SCORE)).code == "OK"

            with structlog.testing.capture_logs() as events:
                first.cert.write_text("nothing")
                await door.reloaded("certificate", outcome="refused")
                await score(door.address, TLS(authority.path))
            assert any(e["log_level"] == "error" and "server.pem" in e["error"] for e in events)

            second_authority = Authority(tmp_path, "second")
            second = second_authority.issue("server", names=LOCAL)
            await door.reloaded("certificate")
            await score(door.address, TLS(second_authority.path))
            with pytest.raises(Unreachable):
                await score(door.address, TLS(authority.path))
            assert (await call(before, SCORE)).code == "OK"  # what is open stays open
            expiry = second.certificate.not_valid_after_utc.timestamp()
            assert door.figure("rewardloop_certificate_expiry_time_seconds") == expiry


@pytest.mark.parametrize("kind", ["no file", "no certificate", "no key", "other key", "expired", "no authority"])
def test_files_that_cannot_serve_are_refused(kind: str, tmp_path: Path, authority: Authority) -> None:
    from rewardloop_server.doors.certificates import _load

    made = authority.issue("server", names=LOCAL)
    match kind:
        case "no file":
            made.cert.unlink()
        case "no certificate":
            made.cert.write_text("nothing")
        case "no key":
            made.key.write_text("nothing")
        case "other key":
            made.key.write_bytes(authority.issue("other", names=LOCAL).key.read_bytes())
        case "expired":
            made = authority.issue("server", names=LOCAL, valid_for=timedelta(hours=-1))
        case "no authority":
            authority.path.write_text("nothing")
    with pytest.raises(BadFile, match=r"server\.|authority\."):
        _load(CertificateFiles(made.cert, made.key, authority.path))


def test_client_says_which_file_it_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(InvalidAccess, match="nowhere"), RewardloopClient("127.0.0.1:1", tls=TLS("nowhere")) as client:
        client.score("p", ["a"])
    with (
        pytest.raises(InvalidAccess, match="nothing"),
        RewardloopClient("127.0.0.1:1", token=tmp_path / "nothing") as client,
    ):
        client.score("p", ["a"])


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "rewardloop.internal:50051", ["127.0.0.1:1", "10.0.0.1:1"]])
def test_token_is_not_sent_in_the_clear(address: Any) -> None:
    with pytest.raises(InvalidAccess, match="only over TLS"):
        RewardloopClient(address, token="hush")
    RewardloopClient(address, token="hush", insecure_token=True).close()
    RewardloopClient(address, token="hush", tls=True).close()
    for local in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x.sock"):
        RewardloopClient(local, token="hush").close()
