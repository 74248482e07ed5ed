"""Where a process may listen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewardloop.process.settings import InvalidSettings, parse
from rewardloop_server.doors.listen import channel_options, is_local, refusal
from rewardloop_server.doors.settings import DoorSettings

LOCAL = ["127.0.0.1:50051", "127.8.0.1:1", "localhost:50051", "[::1]:50051", "unix:/run/x.sock", "unix-abstract:x"]
ELSEWHERE = ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "rewardloop:50051", ":50051", "ipv4:127.0.0.1:1", "x"]


@pytest.mark.parametrize("address", LOCAL)
def test_loopback_needs_nothing(address: str) -> None:
    assert is_local(address)
    assert refusal(address, DoorSettings(callers=Path("callers.toml"))) is None


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_needs_tls_or_a_word(address: str) -> None:
    assert not is_local(address)
    why = refusal(address, DoorSettings())
    assert why is not None
    assert all(part in why for part in (address, "--tls-cert", "--insecure-listen"))
    assert refusal(address, DoorSettings(insecure_listen=True)) is None
    assert refusal(address, DoorSettings(tls_cert=Path("c"), tls_key=Path("k"), callers=Path("f"))) is None


def test_tokens_elsewhere_need_tls_or_another_word() -> None:
    why = refusal("0.0.0.0:1", DoorSettings(insecure_listen=True, callers=Path("f")))
    assert why is not None
    assert "--insecure-tokens" in why
    assert refusal("0.0.0.0:1", DoorSettings(insecure_listen=True, insecure_tokens=True, callers=Path("f"))) is None


@pytest.mark.parametrize("flags", [["--tls-cert", "c"], ["--tls-key", "k"], ["--tls-client-ca", "a"]])
def test_half_of_tls_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidSettings):
        parse(DoorSettings, flags, "test")
    assert "tls_cert" in capsys.readouterr().err


def test_options_are_what_grpc_takes() -> None:
    options: dict[str, Any] = dict(channel_options(DoorSettings(max_connection_age_s=0), 2**26))
    assert all(0 <= value < 2**31 for value in options.values())
    assert len(options) == len(channel_options(DoorSettings(), 2**26))
