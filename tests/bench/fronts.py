"""How many single Scores a second one process answers, and several fronts before one engine that costs next to nothing.

    python tests/bench/fronts.py [--fronts 1 2] [--rounds 5] [--seconds 4]
    python tests/bench/fronts.py --channel

Services take turns, and each figure is compared with that of one process in the same round. The load comes from this
process over bare sockets, as many of them to each front, and takes cores from the services: its CPU is printed too.
``--channel`` measures instead what a Unix socket costs by the bytes that cross it, which is the most that shared memory
could save.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from service import Service, serving
from support.reward_graphs import WORDS, publish_sum_version
from wire import Wire

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, reward_pb2

WORDS_A_TEXT = 30  # 64 tokens with the special ones
METHOD = "/rewardloop.v1.RewardService/Score"
ARGS = ("--load-probe", "never", "--intra-op-threads", "1", "--streams", "1", "--no-spin", "--cache-mib", "0")


@dataclass
class Subject:
    """A service, and what was measured of it in each round."""

    service: Service
    wires: list[Wire]
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    own_cpu_us: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    run_rows: list[float] = field(default_factory=list)

    def figures(self) -> tuple[list[float], ...]:
        """As the table has them."""
        return self.rates, self.ms, self.run_rows, self.cpu_us, self.own_cpu_us


def messages(seed: int) -> list[bytes]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=WORDS_A_TEXT))

    requests = (reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=text()), responses=[text()]) for _ in range(200))
    return [request.SerializeToString() for request in requests]


def processes(service: Service) -> list[psutil.Process]:
    process = psutil.Process(service.pid)
    return [process, *process.children(recursive=True)]


def cpu_s(service: Service) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(service))


def ran(service: Service) -> tuple[float, float]:
    """Rows that the engine has run, and in how many runs."""
    found = {sample.name: sample.value for sample in service.samples()}
    return found["rewardloop_batch_rows_sum"], found["rewardloop_batch_rows_count"]


def connected(service: Service, fronts: int, each: int) -> list[Wire]:
    """Return so many connections to each front, found by opening more of them than are kept."""
    if not fronts:
        return [Wire(service.address, METHOD) for _ in range(each)]
    port = int(service.address.rpartition(":")[2])
    kept: dict[int, list[Wire]] = {}
    for _ in range(200):
        wire = Wire(service.address, METHOD)
        wire.one(messages(0)[0])  # it is accepted now
        local = wire._socket.getsockname()[1]
        for process in processes(service):
            peers = [c.raddr.port for c in process.net_connections("tcp") if c.raddr and c.laddr.port == port]
            if local in peers and len(kept.setdefault(process.pid, [])) < each:
                kept[process.pid].append(wire)
                break
        else:
            wire.close()
        if len(kept) == fronts and all(len(wires) == each for wires in kept.values()):
            return [wire for wires in kept.values() for wire in wires]
    raise SystemExit("the system sends no connection to one of the fronts")


def measure(subject: Subject, callers: int, seconds: float) -> None:
    """One round: so many callers over all connections."""
    ended = [0] * len(subject.wires)

    def load(i: int) -> None:
        texts = itertools.cycle(messages(i))
        ended[i] = subject.wires[i].closed_loop(texts, max(1, callers // len(subject.wires)), seconds)

    for wire in subject.wires:
        wire.ended.answered_s.clear()
    rows, runs = ran(subject.service)
    before, own = cpu_s(subject.service), time.process_time()
    began = time.perf_counter()
    threads = [threading.Thread(target=load, args=(i,)) for i in range(len(subject.wires))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    calls = sum(len(wire.ended.answered_s) for wire in subject.wires)
    refused = sum(len(wire.ended.refused_s) for wire in subject.wires)
    assert not refused, f"{refused} calls were refused"
    subject.rates.append(calls / took)
    subject.cpu_us.append((cpu_s(subject.service) - before) / calls * 1e6)
    subject.own_cpu_us.append((time.process_time() - own) / calls * 1e6)
    more_rows, more_runs = ran(subject.service)
    subject.run_rows.append((more_rows - rows) / (more_runs - runs))
    subject.ms.append(statistics.median(s for wire in subject.wires for s in wire.ended.answered_s) * 1e3)


def channel() -> None:
    """Print the time of a round trip over a Unix socket between two processes, by the bytes that go there."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        here.close()
        while size := there.recv(4, socket.MSG_WAITALL):
            there.recv(int.from_bytes(size), socket.MSG_WAITALL)
            there.sendall(bytes(60))
        os._exit(0)
    there.close()
    least = dict.fromkeys((0, 64, 128, 512, 2048, 16_384), float("inf"))
    for tokens in (*least,) * 30:
        frame = (4 * tokens + 40).to_bytes(4) + bytes(4 * tokens + 40)
        began = time.perf_counter()
        for _ in range(100):
            here.sendall(frame)
            here.recv(60, socket.MSG_WAITALL)
        least[tokens] = min(least[tokens], (time.perf_counter() - began) / 100 * 1e6)
    print(f"{'tokens':>8}  us a round trip (least of 30 times 100, in turns)")
    for tokens, microseconds in least.items():
        print(f"{tokens:8}  {microseconds:.1f} ({microseconds - least[0]:+.1f})")
    here.close()
    os.wait()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--fronts", type=int, nargs="*", default=[1, 2], help="numbers of fronts (default 1 2)")
    options.add_argument("--rounds", type=int, default=5, help="of all services in turns (default 5)")
    options.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    options.add_argument("--callers", type=int, default=64, help="calls in flight (default 64)")
    options.add_argument("--channel", action="store_true", help="measure a Unix socket alone")
    given = options.parse_args()
    if given.channel:
        channel()
        return
    subjects: dict[int, Subject] = {}
    with tempfile.TemporaryDirectory() as store, ExitStack() as stack:
        publish_sum_version(ModelStore(store), max_length=128)
        for fronts in (0, *given.fronts):
            service = stack.enter_context(serving(Path(store), *ARGS, "--front-processes", str(fronts)))
            subjects[fronts] = Subject(service, connected(service, fronts, 4))
        for subject in subjects.values():
            measure(subject, given.callers, 1.0)
            for figures in subject.figures():
                figures.clear()
        for _ in range(given.rounds):
            for subject in subjects.values():
                measure(subject, given.callers, given.seconds)
    one = subjects[0]
    heads = f"{'over one process':>17} {'p50 ms':>7} {'rows a run':>10} {'CPU us/call':>12} {'generator us/call':>18}"
    print(f"{'fronts':>6} {'calls/s':>8} {heads}")
    for fronts, subject in subjects.items():
        ratios = sorted(rate / base for rate, base in zip(subject.rates, one.rates, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})"
        rate, ms, rows, cpu, own = (statistics.median(figures) for figures in subject.figures())
        print(f"{fronts:6} {rate:8.0f} {ratio:>17} {ms:7.1f} {rows:10.1f} {cpu:12.0f} {own:18.0f}")
    cores = f"{os.cpu_count()} cores, which the load shares"
    print(f"{given.callers} callers of one pair of 64 tokens, {given.rounds} rounds, {cores}")


if __name__ == "__main__":
    main()
