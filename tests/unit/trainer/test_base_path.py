"""A mistyped path of a base is refused at once, and a hub id is left to the hub."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from rewardloop_trainer.data.base_path import check_base, check_base_path
from rewardloop_trainer.data.base_text import UnusableBase


@pytest.mark.parametrize(
    "base",
    [
        "/nowhere/at/all",
        "./base",
        "../base",
        "~/base",
        ".hidden",
        "models/own/base",
        "models/bas",
        "other/base/",
        "a b/c",
    ],
)
def test_a_path_without_anything_there_is_refused(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UnusableBase, match=f"^{base}: there is no such directory"):
        check_base_path(base)


@pytest.mark.parametrize("base", ["models/base", "./models/base", ".", "owner/name", "name"])
def test_a_directory_and_a_hub_id_are_taken(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_base_path(base)


def test_an_absolute_directory_is_taken(tmp_path: Path) -> None:
    check_base_path(str(tmp_path))


class _Hub(BaseHTTPRequestHandler):
    """Has the model owner/there alone."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.startswith("/owner/there/") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield
        server.shutdown()


def test_a_hub_id_is_asked_for_once_and_said_so(hub: None) -> None:
    said: list[str] = []
    check_base("owner/there", said.append)
    assert said == ["there is no directory owner/there here: asking the hub for a model of that name"]
    with pytest.raises(UnusableBase, match=r"^owner/modle: there is no such directory here, and the hub has no model"):
        check_base("owner/modle", said.append)


def test_a_hub_that_does_not_answer_is_given_up_at_once(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    started = time.monotonic()
    with pytest.raises(UnusableBase, match=r"the hub .* does not answer"):
        check_base("owner/modle", lambda line: None)
    assert time.monotonic() - started < 5


def test_a_directory_asks_nobody(tmp_path: Path) -> None:
    said: list[str] = []
    check_base(str(tmp_path), said.append)
    assert said == []
