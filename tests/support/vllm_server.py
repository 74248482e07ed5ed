"""A server with the shapes of vLLM's HTTP API, over a small model on the CPU, that can be told to fail.

From vLLM's completion protocol and its adapter routes: what is asked for is what its `CompletionRequest` declares, what
is answered is what its `CompletionResponse` has, and errors have its texts.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel

from rewardloop_sampling.running_batch import sample
from rewardloop_sampling.sampling import SampleRequest
from support.http_servers import running

COMPLETION_FIELDS = {
    "model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop_token_ids", "add_special_tokens", "logprobs",
    "return_token_ids", "stream", "min_tokens",
}  # fmt: skip

Fault = Callable[["_Handler", Any], bool]


@dataclass
class VllmServer:
    """A server, and what it was asked.

    ``faults``: asked in turn, one a request to its path; True: it has answered, or dropped the request. ``is_raw``: it
    reports log-probabilities from before the temperature. ``token_s``: what each part of a stream takes.
    """

    base: Any
    name: str = "base"
    url: str = ""
    is_raw: bool = False
    token_s: float = 0.0
    is_dead: bool = False
    broken_streams: int = 0
    adapters: dict[str, Any] = field(default_factory=dict)
    history: list[tuple[str, Any]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    alter: Callable[[dict[str, Any]], object] = lambda reply: None

    def asked(self, path: str) -> list[Any]:
        return [body for asked, body in self.history if asked == path]


@contextmanager
def vllm_server(base: Any, name: str = "base", port: int = 0) -> Iterator[VllmServer]:
    state = VllmServer(copy.deepcopy(base), name)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    with running(server, poll_s=0.01) as state.url:
        yield state


class _Handler(BaseHTTPRequestHandler):
    state: VllmServer

    def do_GET(self) -> None:
        self._respond(None)

    def do_POST(self) -> None:
        self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _respond(self, body: Any) -> None:
        with self.state.lock:  # one at a time: the model, and the order of faults
            self.state.history.append((self.path, body))
            waiting = self.state.faults.get(self.path, [])
            if waiting and waiting.pop(0)(self, body):
                return
            respond = self.answer(body)
        if respond is not None:  # beside others, as they take long
            respond()

    def answer(self, body: Any) -> Callable[[], None] | None:
        """Answer, or return what answers without the lock."""
        state = self.state
        match self.path:
            case "/health":
                self.send(200, {})
            case "/v1/models":
                length = state.base.config.max_position_embeddings
                data = [{"id": state.name, "object": "model", "root": "/", "parent": None, "max_model_len": length}]
                data += [{"id": name, "object": "model", "root": "/", "parent": state.name} for name in state.adapters]
                self.send(200, {"object": "list", "data": data})
            case "/v1/load_lora_adapter":
                self._load(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter":
                if self.state.adapters.pop(body["lora_name"], None) is None:
                    self.refuse(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
                else:
                    self.send(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
            case "/v1/completions":
                return self._complete(body)
            case _:
                self.send(404, {"detail": "Not Found"})
        return None

    def _load(self, name: str, path: str) -> None:
        if name in self.state.adapters:
            return self.refuse(400, f"The lora adapter '{name}' has already been loaded.")
        self.state.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.state.base), path).eval()
        return self.send(200, f"Success: LoRA adapter '{name}' added successfully.")

    def _complete(self, body: Any) -> Callable[[], None] | None:
        unknown = set(body) - COMPLETION_FIELDS
        if unknown or body["model"] not in {self.state.name, *self.state.adapters}:
            self.refuse(404 if not unknown else 400, f"The model `{body['model']}` does not exist. {unknown}")
            return None
        adapted = self.state.adapters.get(body["model"])
        model = self.state.base if adapted is None else adapted.base_model.model
        request = SampleRequest(
            body["prompt"], body["n"], body["temperature"], body["top_p"], body["seed"], body["max_tokens"]
        )
        ends = {*body["stop_token_ids"], 1}
        (group,) = sample(model, [request], end_ids=ends, pad_id=0)
        choices = [
            {
                "index": i,
                "text": "as text",
                "finish_reason": sampled.finish,
                "stop_reason": None,
                "logprobs": {"token_logprobs": self._logprobs(model, body, sampled), "tokens": [], "top_logprobs": []},
                "token_ids": sampled.ids,
                "prompt_token_ids": body["prompt"],
            }
            for i, sampled in reversed(list(enumerate(group)))
        ]
        head = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": body["model"]}
        if body.get("stream"):
            return lambda: self._stream(head, choices)
        reply = {**head, "choices": choices, "usage": {}}
        self.state.alter(reply)
        self.send(200, reply)
        return None

    def _logprobs(self, model: Any, body: Any, sampled: Any) -> list[float]:
        """As vLLM reports them: greedy ones are of the distribution before the choice."""
        if body["temperature"] and not self.state.is_raw:
            found: list[float] = sampled.logprobs
            return found
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*body["prompt"], *sampled.ids]])).logits[0]
        scored = logits[len(body["prompt"]) - 1 : -1].log_softmax(-1)
        return [row[i].item() for row, i in zip(scored, sampled.ids, strict=True)]

    def _stream(self, head: Any, choices: Any) -> None:
        """Send one token a part, the way server-sent events are."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            for whole in choices:
                count = len(whole["token_ids"])
                for i in range(count):
                    time.sleep(self.state.token_s)
                    if self.state.is_dead:
                        return
                    part = {
                        **whole,
                        "text": "",
                        "finish_reason": whole["finish_reason"] if i + 1 == count else None,
                        "logprobs": {"token_logprobs": [whole["logprobs"]["token_logprobs"][i]]},
                        "token_ids": [whole["token_ids"][i]],
                        "prompt_token_ids": whole["prompt_token_ids"] if i == 0 else None,
                    }
                    self._send_part({**head, "choices": [part]})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.state.broken_streams += 1

    def _send_part(self, part: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(part).encode() + b"\n\n")
        self.wfile.flush()

    def refuse(self, status: int, message: str) -> None:
        self.send(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def send(self, status: int, body: object) -> None:
        self.send_bytes(status, json.dumps(body).encode())

    def send_bytes(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Tests read `history`."""
