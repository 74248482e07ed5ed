"""Which requests take a place among those in work, and which connection gives its place to a new one."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import httpx2
import pytest
from support.http_doors import URL

from rewardloop_console.headers import AsgiApp
from rewardloop_gateway.connections import (
    MOST_STRANGERS,
    STRANGERS,
    Connection,
    ConnectionLimits,
    Connections,
    holder_of,
)
from rewardloop_gateway.entry import Entry
from rewardloop_gateway.turns import Places, Turn


class Patient:
    """An app that reads the body and answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.begun.set()
        if scope["path"] != "/healthz":
            await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def browser(app: AsgiApp) -> httpx2.AsyncClient:
    entry = Entry(app, None, max_body_bytes=1024, max_requests=1, hosts=frozenset())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(entry), base_url=URL)


async def test_further_requests_are_told_when_to_try_again_and_probes_are_answered() -> None:
    app = Patient()
    async with browser(app) as http:
        first = asyncio.ensure_future(http.post("/v1/score", content=b"x"))
        await app.begun.wait()
        second = await http.get("/v1/models")
        assert (second.status_code, second.json()["error"]["reason"]) == (503, "TOO_MANY_REQUESTS")
        assert second.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200
        app.may_answer.set()
        assert (await first).status_code == 200
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_body_that_has_not_come_takes_no_place() -> None:
    app = Patient()
    app.may_answer.set()
    rest = asyncio.Event()

    async def never_ends() -> Any:
        yield b"x"
        await rest.wait()

    async with browser(app) as http:
        slow = [asyncio.ensure_future(http.post("/v1/score", content=never_ends())) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert (await http.post("/v1/score", content=b"x")).status_code == 200
        rest.set()
        await asyncio.gather(*slow)


async def test_a_client_that_does_not_read_takes_no_place() -> None:
    places = Places(1)
    reads = asyncio.Event()

    async def stalled(message: Any) -> None:
        await reads.wait()

    async def nothing() -> Any:
        return {"type": "http.disconnect"}

    turn = Turn(places, nothing, stalled)
    assert turn.begin()
    assert not Turn(places, nothing, stalled).begin()
    sending = asyncio.ensure_future(turn.send({}))
    await asyncio.sleep(0)
    assert places.taken == 0
    reads.set()
    await sending
    assert places.taken == 1
    turn.end()
    turn.end()
    assert places.taken == 0


class Line:
    """Takes the place of a socket and of its transport, and says whether it was hung up."""

    def __init__(self) -> None:
        self.is_hung_up = False

    def abort(self) -> None:
        self.is_hung_up = True


class Table:
    """Connections of which each waits from the moment at which it came."""

    def __init__(self, most: int, per_address: int) -> None:
        self.now = 0.0
        self.connections = Connections(ConnectionLimits(most, per_address, 1, 1, 1, 1), lambda: self.now)

    def come(self, holder: str) -> tuple[Connection | None, Line]:
        self.now += 1
        line = Line()
        connection = self.connections.admit(holder, cast(socket.socket, line))
        if connection is not None:
            connection.transport = cast(asyncio.Transport, line)
        return connection, line


def test_a_new_connection_takes_the_place_of_the_longest_waiting_of_whoever_holds_most() -> None:
    table = Table(most=4, per_address=9)
    _, theirs = table.come("10.0.0.1")
    _, first = table.come("10.0.0.2")
    _, second = table.come("10.0.0.2")
    table.come("10.0.0.2")
    assert table.come("10.0.0.3")[0] is not None
    assert (first.is_hung_up, second.is_hung_up, theirs.is_hung_up) == (True, False, False)
    assert (len(table.connections), table.connections.displaced) == (4, 1)


def test_an_address_at_its_bound_displaces_its_own_connections_and_none_in_work() -> None:
    table = Table(most=9, per_address=2)
    _, other = table.come("10.0.0.1")
    busy, busy_line = table.come("10.0.0.2")
    assert busy is not None
    busy.waiting_since = None
    waiting, waiting_line = table.come("10.0.0.2")
    newest, _ = table.come("10.0.0.2")
    assert (waiting_line.is_hung_up, busy_line.is_hung_up, other.is_hung_up) == (True, False, False)
    assert newest is not None
    newest.waiting_since = None
    assert table.come("10.0.0.2")[0] is None
    assert table.connections.refused == 1
    assert waiting is not None
    table.connections.leave(waiting)  # its transport says so once more
    table.connections.leave(busy)
    assert table.come("10.0.0.2")[0] is not None


def test_strangers_hold_few_connections_whatever_else_is_free() -> None:
    table = Table(most=999, per_address=999)
    lines = [table.come(STRANGERS)[1] for _ in range(MOST_STRANGERS + 3)]
    assert [line.is_hung_up for line in lines] == [True] * 3 + [False] * MOST_STRANGERS


@pytest.mark.parametrize(
    ("host", "holder"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:0:1:aaaa::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_of_one_ipv6_network_are_one(host: str, holder: str) -> None:
    assert holder_of(host) == holder
