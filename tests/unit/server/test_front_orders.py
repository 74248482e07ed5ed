"""What the processes of a service are told, and which settings several processes cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rewardloop_server.fronts.order import Order, orders
from rewardloop_server.settings import ServeSettings


def test_an_order_arrives_as_it_was() -> None:
    settings = ServeSettings(front_processes=2, reward_models=["helpful"], callers=Path("callers.toml"), device="cpu")
    _, fronts = orders(settings, Path("/private"))
    for order in fronts:
        assert Order.from_line(order.to_line()) == order


def test_fronts_share_the_bounds_of_the_service_out() -> None:
    settings = ServeSettings(front_processes=3, max_connections=100, max_rpcs=9, open_calls=2, cache_mib=64)
    engine, fronts = orders(settings, Path("/private"))
    assert engine.is_engine
    assert [front.name for front in fronts] == ["front-0", "front-1", "front-2"]
    for front in fronts:
        part = front.settings
        assert (part.max_connections, part.max_rpcs, part.open_calls, part.cache_mib) == (34, 3, 1, 22)
        assert part.max_message_bytes == settings.max_message_bytes
    assert {each.settings.metrics_port for each in (engine, *fronts)} == {0}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"listen": "unix:/tmp/x.sock"}, "cannot share a Unix socket"),
        ({"spool": "spool"}, "a spool belongs to one process"),
    ],
)
def test_settings_that_several_processes_cannot_have_are_refused(given: dict[str, Any], why: str) -> None:
    ServeSettings(**given)
    with pytest.raises(ValidationError, match=why):
        ServeSettings(front_processes=1, **given)


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardloop_server.settings.sys.platform", "darwin")
    with pytest.raises(ValidationError, match="SO_REUSEPORT"):
        ServeSettings(front_processes=1)
