"""A closed loop of callers against a peer: HTTP/1.1 with kept connections, or the open inference protocol over gRPC.

The shape is that of ``rewardloop bench``: requests are ready bytes, each caller waits for its answer, the warm-up isn't
counted, and a request counts by the part of its time inside the window.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio

from rewardloop_cli.bench.report import percentile

# One request sent, its answer's bytes taken. Raises CallFailed.
Call = Callable[[bytes], Awaitable[bytes]]


class CallFailed(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Target:
    """Where a peer listens. ``path``: of HTTP, or the gRPC method."""

    kind: str
    port: int
    path: str


class HttpConnection:
    """One kept HTTP/1.1 connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, request: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._target.port, limit=2**20)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, _, rest = head.partition(b"content-length:")
            if not rest:
                raise CallFailed(f"no content-length in {head[:200]!r}")
            body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise CallFailed(str(error)) from error
        if b"connection: close" in head:
            self.close()
        if not head.startswith(b"http/1.1 200"):
            raise CallFailed(f"{head.splitlines()[0].decode()}: {body[:200]!r}")
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def http_request(target: Target, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def infer_request(model: str, prompt: str, responses: list[str]) -> bytes:
    """A ModelInferRequest of the open inference protocol: BYTES inputs ``prompt`` and ``response``, [n, 1]."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    def tensor(name: str, texts: list[str]) -> bytes:
        shape = field(3, _varint(len(texts)) + _varint(1))
        contents = b"".join(field(8, text.encode()) for text in texts)
        return field(5, field(1, name.encode()) + field(2, b"BYTES") + shape + field(5, contents))

    return field(1, model.encode()) + tensor("prompt", [prompt] * len(responses)) + tensor("response", responses)


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


async def measure(
    target: Target, requests: list[bytes], callers: int, warm_up_s: float, seconds: float
) -> dict[str, object]:
    """Throughput in requests/s, latencies in milliseconds, failures."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") if target.kind == "grpc" else None
    start = time.perf_counter() + warm_up_s
    end = start + seconds
    latencies: list[float] = []
    failures: list[str] = []
    worked, position, cpu = 0.0, -1, 0.0

    async def call_for_ever() -> None:
        nonlocal worked, position
        call = grpc_call(channel, target) if channel is not None else HttpConnection(target)
        while (due := time.perf_counter()) < end:
            position += 1
            try:
                await call(requests[position % len(requests)])
            except CallFailed as error:
                failures.append(str(error))
                await asyncio.sleep(0.05)
                continue
            now = time.perf_counter()
            worked += max(0.0, min(now, end) - max(due, start)) / (now - due)
            if due >= start:
                latencies.append(now - due)

    async def watch_cpu() -> None:
        nonlocal cpu
        await asyncio.sleep(warm_up_s)
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - cpu) / seconds

    await asyncio.gather(watch_cpu(), *(call_for_ever() for _ in range(callers)))
    if channel is not None:
        await channel.close(None)
    latencies.sort()
    return {
        "requests_per_s": worked / seconds,
        "p50_ms": 1000 * percentile(latencies, 0.5),
        "p99_ms": 1000 * percentile(latencies, 0.99),
        "failures": len(failures),
        "first_failure": failures[0] if failures else "",
        "generator_cpu_share": cpu,
    }


def grpc_call(channel: grpc.aio.Channel, target: Target) -> Call:
    method = channel.unary_unary(target.path)

    async def call(request: bytes) -> bytes:
        try:
            reply: bytes = await method(request, timeout=120)
        except grpc.RpcError as error:
            raise CallFailed(str(error)) from error
        return reply

    return call


async def first_answer(target: Target, request: bytes) -> bytes:
    """One answer. Raises CallFailed or OSError."""
    if target.kind == "http":
        return await HttpConnection(target)(request)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        return await grpc_call(channel, target)(request)


def write_plan(path: Path, target: Target, requests: list[bytes]) -> None:
    path.write_text(json.dumps({"target": asdict(target), "requests": [each.hex() for each in requests]}))


def main() -> None:
    """``load.py PLAN CALLERS WARM_UP SECONDS``: measures in this process and prints JSON."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    callers, warm_up_s, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    requests = [bytes.fromhex(each) for each in plan["requests"]]
    print(json.dumps(asyncio.run(measure(Target(**plan["target"]), requests, callers, warm_up_s, seconds))))


if __name__ == "__main__":
    main()
