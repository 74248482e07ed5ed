"""Ten times more than the service can do: who is refused, how fast, and what becomes of the others.

h2load sends the flood (in C: a Python client would take the cores that the service needs); ``rewardloop bench`` asks a
little beside it and times its own answers and refusals. The rest comes from the service's metrics and /proc.

    python tests/bench/overload.py --seconds 60
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import arguments
import models
import psutil
import service

from rewardloop.v1 import common_pb2, reward_pb2


def main() -> None:
    parser = arguments.parser(__doc__, seconds=60.0)
    parser.add_argument("--factor", type=float, default=10.0, help="offered over saturation (default 10)")
    parser.add_argument("--probe-rate", type=float, default=20.0, help="timed requests a second beside the flood")
    parser.add_argument("--saturation-seconds", type=float, default=10.0)
    options = parser.parse_args()
    h2load = shutil.which("h2load")
    if h2load is None:
        raise SystemExit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        service.export(models.encoder_base(work), store, max_length=256, precision=options.precision)
        pairs = models.pairs("short", 256)
        texts = models.write_rows(work / "short.jsonl", models.as_groups(pairs))
        # The flood repeats one text: that of median length.
        pair = sorted(pairs, key=lambda each: len(each.prompt) + len(each.response))[len(pairs) // 2]
        body = work / "score.bin"
        message = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=pair.prompt), responses=[pair.response])
        body.write_bytes(struct.pack(">?I", False, message.ByteSize()) + message.SerializeToString())
        with service.serving(store, *options.serve_args.split()) as served:
            flood(served, h2load, body, texts, options)


def flood(served: service.Service, h2load: str, body: Path, texts: Path, options: argparse.Namespace) -> None:
    seconds, wanted = options.seconds, options.saturation_seconds
    quiet = service.load(served, "--callers", "64", "--texts", str(texts), "--seconds", str(wanted), "--warm-up", "2")
    saturation = quiet["requests_per_s"]
    rate = options.factor * saturation
    quiet_p99 = quiet["latency_ms"]["p99"]
    print(f"saturation {saturation:.1f} requests/s (64 callers, p99 {quiet_p99:.0f} ms); offered {rate:.0f}/s")
    connections = 4
    command = [h2load, "-D", f"{seconds + 60:.0f}", "-c", str(connections), "-m", "4096", "-d", str(body)]
    command += [f"--rps={rate / connections:.1f}", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += [f"http://{served.address}/rewardloop.v1.RewardService/Score"]
    server = psutil.Process(served.pid)
    memory: list[int] = [server.memory_info().rss]
    with tempfile.TemporaryFile("w+") as output:
        sender = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        done = threading.Event()

        def watch_memory() -> None:
            while not done.wait(0.5):
                memory.append(server.memory_info().rss)

        watcher = threading.Thread(target=watch_memory)
        watcher.start()
        try:
            time.sleep(2)  # the queue is full from here on
            cpu = psutil.Process(sender.pid).cpu_times()
            before, started, server_cpu = served.ended_calls(), time.monotonic(), server.cpu_times()
            probe = service.load(
                served, "--rate", str(options.probe_rate), "--texts", str(texts),
                "--seconds", f"{max(1.0, seconds - 4):.1f}", "--warm-up", "1",
            )  # fmt: skip
            after, wall = served.ended_calls(), time.monotonic() - started
            cpu_after, server_after = psutil.Process(sender.pid).cpu_times(), server.cpu_times()
        finally:
            service.end(sender)
            done.set()
            watcher.join()
    codes = {code: after[code] - before.get(code, 0.0) for code in after}
    generator = (cpu_after.user + cpu_after.system - cpu.user - cpu.system) / wall
    busy = (server_after.user + server_after.system - server_cpu.user - server_cpu.system) / wall
    print(f"ended in {wall:.1f} s, by code: { {code: round(n) for code, n in codes.items()} }")
    print(f"offered {sum(codes.values()) / wall:.0f}/s; h2load took {generator:.2f} cores, the service {busy:.2f}")
    print(f"accepted / saturation: {codes.get('OK', 0.0) / wall / saturation:.3f}")
    service.print_rows(
        [
            ["seen by the probe, ms", "count", "p50", "p99", "max"],
            ["refused", sum(probe["failures"].values()), *(probe["refused_ms"][k] for k in ("p50", "p99", "max"))],
            ["answered", probe["answered"], *(probe["latency_ms"][k] for k in ("p50", "p99", "max"))],
        ]
    )
    print(f"reasons: {probe['failures']}")
    mib = [f"{size / 2**20:.0f} MiB" for size in (memory[0], max(memory), memory[-1])]
    print(f"resident memory: {mib[0]} before, {mib[1]} at most, {mib[2]} at the end")


if __name__ == "__main__":
    main()
