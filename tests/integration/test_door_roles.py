"""Who may call what: every method of every service by every role, and by those who have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from support.doors import METHODS, CallersFile, call, connected

from rewardloop.formats.tokens import new_token
from rewardloop_server.doors.roles import ADMIN, ALLOWED, ROLES

EVERYBODY = {"GetIdentity"}
READING = {"ListVersions", "GetVersion", "WatchVersions"} | EVERYBODY
LOOKING = {
    *("GetProgress", "GetGuidelines", "ListAnswers"),
    *("GetStatus", "ListRounds", "GetRound", "ListPeople", "ListDeadLetters", "ListReports", "GetReport"),
}
ACTIONS = {
    *("Promote", "Rollback", "SetCanary", "SetShadow", "AddTasks", "RetractTasks", "SetGuidelines"),
    *("SetMuted", "RequeueDeadLetter", "DropDeadLetter", "Erase", "ListTaughtVersions"),
}
MAY = {
    "score": {"Score", "ScoreBatch", "ScoreStream"} | READING,
    "feedback": {"Record", "RecordBatch", "Retract"} | READING,
    "generate": {"Generate", "GenerateStream"} | READING,
    "label": {"NextTask", "Answer", "Undo", "GetProgress", "GetGuidelines"} | EVERYBODY,
    "view": LOOKING | READING,
    "admin": ACTIONS | LOOKING | READING,
}
PAST = "2020-01-01T00:00:00Z"


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


def name(path: str) -> str:
    return path.rpartition("/")[2]


def test_table_has_every_method_of_every_service() -> None:
    assert set(ALLOWED) == set(METHODS)
    assert set(MAY) == set(ROLES)
    assert {name(path) for path in ADMIN} == ACTIONS


@pytest.mark.parametrize("role", ROLES)
async def test_role_may_call_its_methods_and_no_other(role: str, callers: CallersFile) -> None:
    token = callers.add("caller", role)
    async with connected(callers=callers.path) as (door, channel):
        for path in METHODS:
            ended = await call(channel, path, token)
            allowed = name(path) in MAY[role]
            expected = ("OK", "") if allowed else ("PERMISSION_DENIED", "NOT_ALLOWED")
            assert (ended.code, ended.reason) == expected, path
        assert set(door.behind.calls) == MAY[role]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "NO_CREDENTIALS"),
        ("wrong", "WRONG_CREDENTIALS"),
        ("empty", "WRONG_CREDENTIALS"),
        ("expired", "EXPIRED_CREDENTIALS"),
    ],
)
async def test_nobody_comes_in_without_a_good_token(kind: str, reason: str, callers: CallersFile) -> None:
    callers.add("other", *ROLES)
    expired = callers.add("late", *ROLES, expires=PAST)
    token = {"none": None, "wrong": new_token(), "empty": "", "expired": expired}[kind]
    async with connected(callers=callers.path) as (door, channel):
        for path in METHODS:
            ended = await call(channel, path, token)
            assert (ended.code, ended.reason) == ("UNAUTHENTICATED", reason), path
        assert door.behind.calls == []
        label = {"method": "RewardService/Score", "code": "UNAUTHENTICATED"}
        assert door.figure("rewardloop_requests_total", **label) == 1
        assert door.figure("rewardloop_rejected_total", reason=reason) == len(METHODS)


async def test_several_roles_add_up(callers: CallersFile) -> None:
    token = callers.add("trainer", "score", "admin")
    async with connected(callers=callers.path) as (door, channel):
        for path in METHODS:
            await call(channel, path, token)
        assert set(door.behind.calls) == MAY["score"] | MAY["admin"]


async def test_unknown_methods_are_refused_to_everybody(callers: CallersFile) -> None:
    token = callers.add("root", *ROLES)
    paths = ["/rewardloop.v1.RewardService/Nope", "/rewardloop.v2.RewardService/Score", "/other.Service/Method"]
    async with connected(callers=callers.path) as (door, channel):
        for path in paths:
            assert (await call(channel, path, token)).code == "PERMISSION_DENIED"
            assert (await call(channel, path)).code == "UNAUTHENTICATED"
        # What callers make up is no label: it would grow without bound.
        labels = [
            s.labels["method"] for m in door.metrics.registry.collect() for s in m.samples if "method" in s.labels
        ]
        assert "RewardService/Nope" not in labels
        assert door.figure("rewardloop_requests_total", method="/rewardloop.unknown", code="PERMISSION_DENIED") == 3


async def test_health_and_reflection_need_no_token(callers: CallersFile) -> None:
    async with connected(callers=callers.path) as (_door, channel):
        check = health_pb2.HealthCheckRequest().SerializeToString()
        assert (await call(channel, "/grpc.health.v1.Health/Check", request=check)).code == "OK"
        reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        assert (await call(channel, reflect)).code == "OK"


async def test_refused_before_its_message_is_read(callers: CallersFile) -> None:
    token = callers.add("reader", "feedback")
    async with connected(callers=callers.path) as (_door, channel):
        assert (await call(channel, METHODS[0], request=None)).reason == "NO_CREDENTIALS"
        assert (await call(channel, METHODS[0], token, request=None)).reason == "NOT_ALLOWED"


async def test_without_a_callers_file_everybody_may_call_everything() -> None:
    async with connected() as (_door, channel):
        for path in METHODS:
            assert (await call(channel, path)).code == "OK", path
        assert (await call(channel, "/rewardloop.v1.RewardService/Nope")).code == "UNIMPLEMENTED"


@pytest.mark.parametrize("value", ["bearer {}", "BEARER {}", "Bearer  {} "])
async def test_scheme_is_read_as_http_says(value: str, callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    async with connected(callers=callers.path) as (door, channel):
        made: Any = channel.unary_unary(METHODS[0])(b"", metadata=(("authorization", value.format(token)),))
        await made
        assert door.behind.calls == ["Score"]
