"""Each peer: how its server is started and asked, and how its scores are read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from load import Target, http_request, infer_request

from rewardloop_client import ScoreGroup

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all peers share in one run. ``python``: of the peer's own environment. ``scratch``: an empty directory."""

    python: Path
    model: Path
    max_length: int
    threads: int
    port: int
    scratch: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PEER_MODEL": str(self.model),
            "PEER_MAX_LENGTH": str(self.max_length),
            "PEER_THREADS": str(self.threads),
            "PEER_PORT": str(self.port),
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": str(SERVERS),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "DO_NOT_TRACK": "1",
        }


@dataclass(frozen=True, slots=True)
class Peer:
    """``takes_groups``: one call holds a prompt with several responses of a decoder."""

    name: str
    command: Callable[[Setting], list[str]]
    target: Callable[[int], Target]
    request: Callable[[Target, ScoreGroup], bytes]
    scores: Callable[[bytes], list[float]]
    takes_groups: bool


def _script(name: str, *arguments: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        filled = [argument.format(port=setting.port) for argument in arguments]
        return [str(setting.python), str(SERVERS / name), *filled]

    return command


def _http(path: str) -> Callable[[int], Target]:
    return lambda port: Target("http", port, path)


def _grpc(port: int) -> Target:
    return Target("grpc", port, _INFER)


def _group(target: Target, group: ScoreGroup) -> bytes:
    return http_request(target, {"prompt": group.prompt, "responses": list(group.responses)})


def _group_scores(body: bytes) -> list[float]:
    return [float(score) for score in json.loads(body)["scores"]]


def _infer(_: Target, group: ScoreGroup) -> bytes:
    return infer_request("scoring", str(group.prompt), list(group.responses))


def _infer_scores(reply: bytes) -> list[float]:
    """Of a ModelInferResponse: its raw contents (field 6), or the float contents (6) of its first output (5)."""
    fields = _fields(reply)
    packed = fields[6][0] if 6 in fields else _fields(_fields(fields[5][0])[5][0])[6][0]
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


def _fields(message: bytes) -> Mapping[int, list[bytes]]:
    """The length-delimited fields of a protobuf message, by number; others are skipped."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 2:
            length = varint()
            found.setdefault(key >> 3, []).append(message[at : at + length])
            at += length
        elif key & 7 == 0:
            varint()
        else:
            at += 8 if key & 7 == 1 else 4
    return found


def _mlserver(setting: Setting) -> list[str]:
    """Its settings are files in a directory."""
    implementation = {"name": "scoring", "implementation": "mlserver_model.Scoring"}
    batching = {"max_batch_size": 32, "max_batch_time": 0.01}
    (setting.scratch / "model-settings.json").write_text(json.dumps({**implementation, **batching}))
    ports = {"http_port": setting.port + 1, "grpc_port": setting.port, "metrics_port": setting.port + 2}
    settings = {"host": "127.0.0.1", "parallel_workers": 1, "metrics_endpoint": None, **ports}
    (setting.scratch / "settings.json").write_text(json.dumps(settings))
    return [str(setting.python.parent / "mlserver"), "start", str(setting.scratch)]


def _infinity(engine: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        options = ["--model-id", str(setting.model), "--served-model-name", "scoring", "--engine", engine]
        options += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(setting.port)]
        options += ["--no-bettertransformer", "--batch-size", "32", "--log-level", "warning"]
        return [str(setting.python.parent / "infinity_emb"), "v2", *options]

    return command


def _rerank(target: Target, group: ScoreGroup) -> bytes:
    body = {"model": "scoring", "query": group.prompt, "documents": list(group.responses), "raw_scores": True}
    return http_request(target, body)


def _rerank_scores(body: bytes) -> list[float]:
    results = sorted(json.loads(body)["results"], key=lambda each: each["index"])
    return [float(each["relevance_score"]) for each in results]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", _script("fastapi_server.py"), _http("/score"), _group, _group_scores, True),
        Peer(
            "mosec",
            _script("mosec_server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "120000"),
            _http("/score"),
            _group,
            _group_scores,
            True,
        ),
        Peer("litserve", _script("litserve_server.py"), _http("/score"), _group, _group_scores, True),
        Peer("mlserver", _mlserver, _grpc, _infer, _infer_scores, False),
        Peer("infinity", _infinity("torch"), _http("/rerank"), _rerank, _rerank_scores, False),
        Peer("pytriton", _script("pytriton_server.py"), _grpc, _infer, _infer_scores, False),
    )
}
