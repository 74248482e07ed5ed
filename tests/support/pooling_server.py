"""A server with the shapes of vLLM's and SGLang's HTTP APIs for pooling, over functions of token ids.

Of vLLM: what it is asked is what its `PoolingCompletionRequest` declares, what it answers is its `PoolingResponse`, and
errors have its texts. Of SGLang: its `EmbeddingReqInput` and the list that its ``/classify`` answers.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.pooling_file import POOLING, PoolingFile, Probe
from rewardloop.formats.text import Encoder, Turn
from support.http_servers import running
from support.reward_graphs import word_tokenizer

# Makes the raw logits of token ids.
Classifier = Callable[[list[int]], list[float]]

_FIELDS = {"model", "task", "input", "use_activation", "add_special_tokens", "encoding_format"}

# Given the rows of token ids: a status and a text to answer instead of outputs, or None.
Refusal = Callable[[list[list[int]]], tuple[int, str] | None]


@dataclass
class PoolingServer:
    """A server, and what it was asked.

    ``models``: classifiers by name. ``activates``: it gives probabilities whatever it is asked for, as
    a release does that does not know the field. ``weights``: what SGLang's form calls them. ``refuses``: asked before
    each answer. ``until_open``: an answer waits for it.
    """

    models: Mapping[str, Classifier]
    url: str = ""
    max_model_len: int | None = None
    activates: bool = False
    weights: str = "default"
    refuses: Refusal = lambda rows: None
    until_open: threading.Event = field(default_factory=threading.Event)
    history: list[tuple[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: set[socket.socket] = field(default_factory=set)

    def drop(self) -> None:
        """Close every connection."""
        for connection in tuple(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def pooling_server(models: Mapping[str, Classifier], port: int = 0, **about: Any) -> Iterator[PoolingServer]:
    """Serve the models. At the end every connection is closed, as the system does for a process that ends."""
    state = PoolingServer(models, **about)
    state.until_open.set()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    with running(server, poll_s=0.01) as state.url:
        yield state
    state.drop()


class _Handler(BaseHTTPRequestHandler):
    state: PoolingServer

    def setup(self) -> None:
        super().setup()
        self.state.connections.add(self.connection)

    def finish(self) -> None:
        self.state.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        data = [
            {"id": name, "object": "model", "max_model_len": self.state.max_model_len} for name in self.state.models
        ]
        self._send(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.state
        state.history.append((self.path, body))
        state.keys.add(self.headers.get("Authorization", ""))
        while not state.until_open.is_set():
            time.sleep(0.01)
        match self.path:
            case "/pooling":
                self._vllm(body)
            case "/classify":
                self._sglang(body)
            case _:
                self._send(404, {"detail": "Not Found"})

    def _vllm(self, body: Any) -> None:
        if set(body) - _FIELDS or body["task"] != "classify":
            return self._refuse(400, f"unknown fields or task: {sorted(body)}")
        if body["model"] not in self.state.models:
            return self._refuse(404, f"The model `{body['model']}` does not exist.")
        found = self._outputs(body["model"], body["input"], activates=body["use_activation"] is not False)
        if found is None:
            return None
        data = [{"index": i, "object": "pooling", "data": row} for i, row in reversed(list(enumerate(found)))]
        return self._send(200, {"id": "pool-1", "object": "list", "created": 0, "model": body["model"], "data": data})

    def _sglang(self, body: Any) -> None:
        (name,) = self.state.models
        longest, most = max(map(len, body["input_ids"])), self.state.max_model_len
        if most is not None and longest >= most:
            message = f"The input ({longest} tokens) is longer than the model's context length ({most} tokens)."
            return self._send(400, {"error": {"message": message}})
        found = self._outputs(name, body["input_ids"], activates=False)
        if found is None:
            return None
        meta = {"prompt_tokens": 1, "weight_version": self.state.weights}
        return self._send(200, [{"embedding": row, "meta_info": meta} for row in found])

    def _outputs(self, name: str, rows: list[list[int]], *, activates: bool) -> list[list[float]] | None:
        if (refusal := self.state.refuses(rows)) is not None:
            self._refuse(*refusal)
            return None
        with self.state.lock:
            found = [self.state.models[name](ids) for ids in rows]
        return [_activated(logits) for logits in found] if activates or self.state.activates else found

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the caller has hung up

    def log_message(self, *_: object) -> None:
        """Tests read `history`."""


def _activated(logits: list[float]) -> list[float]:
    """What vLLM makes of logits unless it is told otherwise."""
    powers = [math.exp(logit) for logit in logits]
    return [powers[0] / (1 + powers[0])] if len(powers) == 1 else [power / sum(powers) for power in powers]


def sum_of(factor: float) -> Classifier:
    """A classifier whose logit is the sum of the ids, times ``factor``."""
    return lambda ids: [factor * sum(ids)]


def publish_sum_pool(store: ModelStore, name: str = "judge", factor: float = 0.1, *, model: str = "reward") -> Manifest:
    """Publish a version that a server elsewhere runs as ``sum_of(factor)``; its texts are words of `reward_graphs`."""
    tokenizer = word_tokenizer()
    text_format = TextFormat.for_encoder(tokenizer)
    encoder = Encoder(tokenizer, text_format, 64)
    probes = []
    for prompt, response in (("alpha", "beta"), ("gamma gamma", "alpha eta"), ("beta", "theta theta theta")):
        ids = encoder.pair((Turn("user", prompt),), response).ids
        probes.append(Probe((("user", prompt),), response, tuple(ids), tuple(sum_of(factor)(ids))))
    file = PoolingFile(name, None, 0.001, tuple(probes))

    def write(directory: Path) -> None:
        (directory / POOLING).write_text(file.to_json())
        tokenizer.save(str(directory / "tokenizer.json"))

    return store.publish(Manifest(model=model, text_format=text_format.to_json(), max_length=64), write)
