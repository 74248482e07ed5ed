"""Ten times more than the service can do: who is refused, how fast, and what becomes of the others.

The flood and, as a caller of its own, a few timed requests beside it come over bare sockets (`wire.py`): a client
library would take the cores that the service needs. Memory and CPU time are from /proc.

    python tests/bench/overload.py --seconds 60
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time

import arguments
import models
import psutil
import service
from wire import Ended, Wire

from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_cli.bench.report import percentile

_METHOD = "/rewardloop.v1.RewardService/Score"
_MOST_UNDER_WAY = 8192  # more than wait in the queue, so that the flood does not wait


def main() -> None:
    parser = arguments.parser(__doc__, seconds=60.0)
    parser.add_argument("--factor", type=float, default=10.0, help="offered over saturation (default 10)")
    parser.add_argument("--probe-rate", type=float, default=20.0, help="timed requests a second beside the flood")
    parser.add_argument("--saturation-seconds", type=float, default=10.0)
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        service.export(models.encoder_base(work), store, max_length=256, precision=options.precision)
        # One text, that of median length.
        pairs = sorted(models.pairs("short", 256), key=lambda each: len(each.prompt) + len(each.response))
        pair = pairs[len(pairs) // 2]
        request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=pair.prompt), responses=[pair.response])
        with service.serving(store, *options.serve_args.split()) as served:
            flood(served, request.SerializeToString(), options)


def flood(served: service.Service, message: bytes, options: argparse.Namespace) -> None:
    messages = itertools.repeat(message)
    sender, beside = Wire(served.address, _METHOD), Wire(served.address, _METHOD)
    sender.closed_loop(messages, 64, 2)
    before = len(sender.ended)
    saturation = sender.closed_loop(messages, 64, options.saturation_seconds) / options.saturation_seconds
    quiet_p99 = 1000 * percentile(sorted(sender.ended.answered_s[before:]), 0.99)
    rate = options.factor * saturation
    print(f"saturation {saturation:.1f} requests/s (64 callers, p99 {quiet_p99:.0f} ms); offered {rate:.0f}/s")
    server, here = psutil.Process(served.pid), psutil.Process()
    sender.at_rate(messages, rate, 2, _MOST_UNDER_WAY)  # fills the queue, and its first costs are over then
    memory: list[int] = [server.memory_info().rss]
    probe: list[Ended] = []
    done = threading.Event()

    def watch_memory() -> None:
        while not done.wait(0.5):
            memory.append(server.memory_info().rss)

    def ask_beside() -> None:
        time.sleep(1)  # the queue is full again
        probe.append(beside.at_rate(messages, options.probe_rate, options.seconds - 2, _MOST_UNDER_WAY))

    threads = [threading.Thread(target=each) for each in (watch_memory, ask_beside)]
    for thread in threads:
        thread.start()
    try:
        cpu, own = server.cpu_times(), here.cpu_times()
        started = time.monotonic()
        seen = sender.at_rate(messages, rate, options.seconds, _MOST_UNDER_WAY)
        cpu_after, own_after, wall = server.cpu_times(), here.cpu_times(), time.monotonic() - started
    finally:
        done.set()
        for thread in threads:
            thread.join()
    busy = (cpu_after.user + cpu_after.system - cpu.user - cpu.system) / wall
    generator = (own_after.user + own_after.system - own.user - own.system) / wall
    answered = (len(seen.answered_s) + len(probe[0].answered_s)) / options.seconds
    print(f"ended in {options.seconds:g} s: {len(seen.answered_s)} answered, {len(seen.refused_s)} refused")
    print(f"cores: the flood {generator:.2f}, the service {busy:.2f}")
    print(f"accepted / saturation: {answered / saturation:.3f}")
    rows: list[list[object]] = [["ms", "count", "p50", "p99", "max"]]
    for name, seconds in (
        ("refused of the flood", seen.refused_s),
        ("answered of the flood", seen.answered_s),
        ("refused beside it", probe[0].refused_s),
        ("answered beside it", probe[0].answered_s),
    ):
        ordered = sorted(seconds)
        rows.append([name, len(ordered), *(1000 * percentile(ordered, share) for share in (0.5, 0.99, 1.0))])
    service.print_rows(rows)
    mib = [f"{size / 2**20:.0f} MiB" for size in (memory[0], max(memory), memory[-1])]
    print(f"resident memory: {mib[0]} before, {mib[1]} at most, {mib[2]} at the end")


if __name__ == "__main__":
    main()
