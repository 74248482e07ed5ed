"""An OpenAI-compatible endpoint that judges, criticises and revises by rules of its own, and can be told to fail."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.http_servers import running

Message = dict[str, str]
# Given the messages: what the model writes.
Says = Callable[[list[Message]], str]
# Given the handler: answers the request otherwise.
Fault = Callable[["Handler"], None]

_PART = r"<{what}-[0-9a-f]{{16}}>\n(.*?)\n</{what}-[0-9a-f]{{16}}>"


@dataclass
class JudgeEndpoint:
    """``faults``: one a request, in turn; then ``says`` answers. ``delay_s``: of every reply."""

    says: Says
    url: str = ""
    delay_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    state: JudgeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            self.state.asked.append(body)
            self.state.headers.append({key.lower(): value for key, value in self.headers.items()})
            self.state.in_flight += 1
            self.state.most_in_flight = max(self.state.most_in_flight, self.state.in_flight)
            fault = self.state.faults.pop(0) if self.state.faults else None
        try:
            time.sleep(self.state.delay_s)
            if self.path != "/v1/chat/completions":
                self.answer(404, {"error": {"message": "no such path"}})
            elif fault is not None:
                fault(self)
            else:
                self.answer(200, completion(self.state.says(body["messages"])))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the caller was killed
        finally:
            with self.state.lock:
                self.state.in_flight -= 1

    def answer(self, status: int, body: Any, **headers: str) -> None:
        self.raw(status, json.dumps(body).encode(), "application/json", **headers)

    def raw(self, status: int, data: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


def completion(text: str | None, model: str = "judge-2026-11", tokens: tuple[int, int] = (100, 10)) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers that were killed."""


@contextmanager
def judge_endpoint(says: Says, **about: Any) -> Iterator[JudgeEndpoint]:
    state = JudgeEndpoint(says, **about)
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
    with running(server, poll_s=0.05) as url:
        state.url = f"{url}/v1"
        yield state


def part(text: str, what: str) -> str:
    """What stands between the marks."""
    match = re.search(_PART.format(what=what), text, re.DOTALL)
    assert match, text
    return match[1]


def compared(messages: list[Message]) -> tuple[str, str, str]:
    """The conversation and the two responses that are to be compared, in the order in which they are shown."""
    text = messages[1]["content"]
    return part(text, "conversation"), part(text, "response-A"), part(text, "response-B")


def rates(rating: Callable[[str], int]) -> Says:
    """A judge that gives each response the rating, from 1 to 10, that it is told."""

    def says(messages: list[Message]) -> str:
        return f"I read it.\nRATING: {rating(part(messages[1]['content'], 'response'))}"

    return says


def biased(better: Callable[[str, str, str], bool], first: float, error: float) -> Says:
    """A judge that takes the response shown first in a share ``first`` of the pairs, and else errs in ``error``.

    What it does with a pair is drawn once, and so is the same in every call. ``better``: whether a response to a
    conversation is better than another one.
    """

    def says(messages: list[Message]) -> str:
        asked, a, b = compared(messages)
        chance = random.Random(f"{asked}/{sorted((a, b))}")
        if chance.random() < first:
            return "I take the first.\nVERDICT: A"
        is_wrong = chance.random() < error
        return f"I looked at both.\nVERDICT: {'A' if better(asked, a, b) != is_wrong else 'B'}"

    return says
