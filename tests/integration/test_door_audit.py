"""The audit log: what admins did, what was refused, and nothing done that is not in it."""

# ruff: noqa: ASYNC240 - small files beside a server that waits for nothing else

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from support.doors import CallersFile, call, connected

from rewardloop.formats.tokens import new_token
from rewardloop.v1 import model_pb2
from rewardloop_server.calls.errors import UnknownVersion
from rewardloop_server.doors.roles import ADMIN

PROMOTE = "/rewardloop.v1.ModelService/Promote"


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_text().splitlines()]


def promotion(version: str = "7", reason: str = "better") -> bytes:
    return model_pb2.PromoteRequest(model="reward", version=version, reason=reason).SerializeToString()


async def test_action_has_caller_parameters_and_outcome(callers: CallersFile, audit: Path) -> None:
    token = callers.add("ops", "admin")
    async with connected(callers=callers.path, audit_file=audit) as (door, channel):
        with structlog.testing.capture_logs() as events:
            assert (await call(channel, PROMOTE, token, promotion())).code == "OK"

        async def refuse(path: str, request: Any) -> None:
            raise UnknownVersion("no such version")

        door.behind.begin = refuse
        assert (await call(channel, PROMOTE, token, promotion("99"))).code == "NOT_FOUND"
        began, ended, began_2, ended_2 = lines(audit)
        assert began["event"] == "began"
        assert (began["caller"], began["method"]) == ("ops", PROMOTE)
        assert began["parameters"] == {"model": "reward", "version": "7", "reason": "better"}
        assert began["peer"].startswith("ipv4:127.0.0.1:")
        assert began["time"].endswith("+00:00")
        assert (ended["event"], ended["outcome"], ended["reason"]) == ("ended", "OK", "")
        assert began["id"] == ended["id"] != began_2["id"] == ended_2["id"]
        assert (ended_2["outcome"], ended_2["reason"]) == ("NOT_FOUND", "UNKNOWN_VERSION")
        assert [e["step"] for e in events if e["event"] == "admin action"] == ["began", "ended"]
        assert oct(audit.stat().st_mode & 0o777) == "0o600"


async def test_every_admin_method_is_on_record_and_no_other(callers: CallersFile, audit: Path) -> None:
    token = callers.add("ops", "admin", "score")
    async with connected(callers=callers.path, audit_file=audit) as (_door, channel):
        for path in [*sorted(ADMIN), "/rewardloop.v1.RewardService/Score"]:
            assert (await call(channel, path, token)).code == "OK"
    assert {line["method"] for line in lines(audit)} == ADMIN


async def test_refused_attempts_are_on_record(callers: CallersFile, audit: Path) -> None:
    token = callers.add("shop", "score")
    wrong = new_token()
    async with connected(callers=callers.path, audit_file=audit) as (_door, channel):
        await call(channel, PROMOTE)
        await call(channel, PROMOTE, wrong)
        await call(channel, PROMOTE, token)
        await call(channel, "/rewardloop.v1.RewardService/Score", wrong)
    seen = [(line["event"], line["caller"], line["outcome"], line["reason"]) for line in lines(audit)]
    assert seen == [
        ("refused", "", "UNAUTHENTICATED", "NO_CREDENTIALS"),
        ("refused", "", "UNAUTHENTICATED", "WRONG_CREDENTIALS"),
        ("refused", "shop", "PERMISSION_DENIED", "NOT_ALLOWED"),
    ]
    assert wrong not in audit.read_text()
    assert token not in audit.read_text()


async def test_nothing_is_done_that_cannot_be_put_on_record(callers: CallersFile, tmp_path: Path) -> None:
    token = callers.add("ops", "admin")
    audit = tmp_path / "missing" / "audit.jsonl"
    async with connected(callers=callers.path, audit_file=audit) as (door, channel):
        ended = await call(channel, PROMOTE, token, promotion())
        assert (ended.code, ended.reason) == ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
        assert door.behind.calls == []
        assert door.figure("rewardloop_audit_lines_total", outcome="failed") == 1
        audit.parent.mkdir()
        assert (await call(channel, PROMOTE, token, promotion())).code == "OK"


async def test_file_may_be_moved_away_and_may_end_in_half_a_line(callers: CallersFile, audit: Path) -> None:
    token = callers.add("ops", "admin")
    async with connected(callers=callers.path, audit_file=audit) as (_door, channel):
        await call(channel, PROMOTE, token, promotion("1"))
        audit.rename(audit.with_suffix(".old"))
        audit.write_text('{"time": "20')
        await call(channel, PROMOTE, token, promotion("2"))
    half, *whole = audit.read_text().splitlines()
    assert half == '{"time": "20'
    assert [json.loads(line)["event"] for line in whole] == ["began", "ended"]


async def test_flood_of_refused_attempts_does_not_fill_the_disk(callers: CallersFile, audit: Path) -> None:
    callers.add("ops", "admin")

    async with connected(callers=callers.path, audit_file=audit) as (door, channel):
        for _ in range(300):
            await call(channel, PROMOTE)
        suppressed = door.figure("rewardloop_audit_lines_total", outcome="suppressed")
        written = door.figure("rewardloop_audit_lines_total", outcome="written")
        assert suppressed + written == 300
        assert suppressed > 0
        assert len(lines(audit)) == written


async def test_text_of_a_caller_cannot_forge_a_line(audit: Path) -> None:
    async with connected(audit_file=audit) as (_, channel):
        forged = 'x"}\n{"event": "began", "caller": "ops"}\n'
        await call(channel, PROMOTE, request=promotion("1", forged + "y" * 10_000))
    began, _ = lines(audit)
    assert began["parameters"]["reason"].startswith(forged)
    assert len(began["parameters"]["reason"]) == 500
