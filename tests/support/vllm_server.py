"""A server with the shapes of vLLM's HTTP API, over a small model on the CPU, that can be told to fail.

From vLLM's completion protocol and its adapter routes: what is asked for is what its `CompletionRequest` declares, what
is answered is what its `CompletionResponse` has, and errors have its texts.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from peft import PeftModel

from rewardloop_sampling.sampling import SampleRequest, sample
from support.http_servers import running

COMPLETION_FIELDS = {
    "model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop_token_ids", "add_special_tokens", "logprobs",
    "return_token_ids",
}  # fmt: skip

Fault = Callable[["_Handler", Any], bool]


@dataclass
class VllmServer:
    """``faults``: asked in turn, one a request to its path; True: it has answered, or dropped the request."""

    base: Any
    url: str = ""
    adapters: dict[str, Any] = field(default_factory=dict)
    history: list[tuple[str, Any]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    alter: Callable[[dict[str, Any]], object] = lambda reply: None

    def asked(self, path: str) -> list[Any]:
        return [body for asked, body in self.history if asked == path]


@contextmanager
def vllm_server(base: Any) -> Iterator[VllmServer]:
    state = VllmServer(copy.deepcopy(base))
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
            self.answer(body)

    def answer(self, body: Any) -> None:
        match self.path:
            case "/v1/models":
                names = ["base", *self.state.adapters]
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
            case "/v1/load_lora_adapter":
                self._load(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter":
                if self.state.adapters.pop(body["lora_name"], None) is None:
                    return self.refuse(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
                self.send(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
            case "/v1/completions":
                self._complete(body)
            case _:
                self.send(404, {"detail": "Not Found"})
        return None

    def _load(self, name: str, path: str) -> None:
        if name in self.state.adapters:
            return self.refuse(400, f"The lora adapter '{name}' has already been loaded.")
        self.state.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.state.base), path).eval()
        return self.send(200, f"Success: LoRA adapter '{name}' added successfully.")

    def _complete(self, body: Any) -> None:
        unknown = set(body) - COMPLETION_FIELDS
        if unknown or body["model"] not in self.state.adapters:
            return self.refuse(404 if not unknown else 400, f"The model `{body['model']}` does not exist. {unknown}")
        peft_model = self.state.adapters[body["model"]]
        request = SampleRequest(
            body["prompt"], body["n"], body["temperature"], body["top_p"], body["seed"], body["max_tokens"]
        )
        ends = {*body["stop_token_ids"], 1}
        (group,) = sample(peft_model.base_model.model, [request], end_ids=ends, pad_id=0)
        reply = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": i,
                    "text": "as text",
                    "finish_reason": sampled.finish,
                    "stop_reason": None,
                    "logprobs": {"token_logprobs": sampled.logprobs, "tokens": [], "top_logprobs": []},
                    "token_ids": sampled.ids,
                    "prompt_token_ids": body["prompt"],
                }
                for i, sampled in reversed(list(enumerate(group)))
            ],
            "usage": {},
        }
        self.state.alter(reply)
        return self.send(200, reply)

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
