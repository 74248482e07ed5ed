"""rewardloop beside other servers: the same weights, texts and cores, one after the other in every round of one run.

Each peer gets an environment of its own under --work (installed by pip the first time), is started, asked for its
scores, loaded by the same closed loop, and ended. A peer that doesn't install or run is named with its error.

    python tests/bench/peers/run.py --work /tmp/peers --data ../shared/data
    python tests/bench/peers/run.py --work /tmp/peers --workload groups
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import arguments  # noqa: E402
import models  # noqa: E402
import service  # noqa: E402
from catalogue import PEERS, Peer, Setting  # noqa: E402
from load import CallFailed, Target, first_answer, write_plan  # noqa: E402

from rewardloop_client import RewardloopClient, ScoreGroup  # noqa: E402
from rewardloop_local.ports import free_port  # noqa: E402

COLUMNS = ("system", "pairs/s", "p50 ms", "p99 ms", "generator CPU", "failed", "we over it", "logits differ by")
# Importing torch and loading a model takes a while on busy cores.
START_PATIENCE_S = 240.0


@dataclass(frozen=True, slots=True)
class Workload:
    """``base``: the Hugging Face directory that all serve. ``asked``: one group a call."""

    name: str
    base: Path
    max_length: int
    asked: list[ScoreGroup]

    @property
    def pairs_a_call(self) -> int:
        return len(self.asked[0].responses)


@dataclass(frozen=True, slots=True)
class Figures:
    """One system in one round."""

    pairs_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int
    generator_cpu_share: float
    scores: list[float]


def environment(peer: Peer, venvs: Path, interpreter: str) -> Path:
    """The peer's Python, from an environment of ``interpreter`` that is made once. Raises NotRun."""
    directory = venvs / peer.name
    python = directory / "bin" / "python"
    if not (directory / "installed").exists():
        print(f"installing {peer.name} ...", flush=True)
        requirements = HERE / "requirements" / f"{peer.name}.txt"
        for command in (
            [interpreter, "-m", "venv", "--clear", str(directory)],
            [str(python), "-m", "pip", "install", "-q", "--no-compile", "-r", str(requirements)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise service.NotRun(f"does not install: {done.stderr.strip()[-600:]}")
        (directory / "installed").touch()
    return python


@contextmanager
def started(peer: Peer, python: Path, workload: Workload, threads: int) -> Iterator[Target]:
    """The peer, once it answers; ended, with all its processes, when the block ends. Raises NotRun."""
    with tempfile.TemporaryDirectory(prefix=f"rewardloop-{peer.name}-") as scratch:
        setting = Setting(python, workload.base, workload.max_length, threads, free_port(), Path(scratch))
        log_path = Path(scratch) / "peer.log"
        command = peer.command(setting)
        with log_path.open("wb") as log:
            # A session of its own: peers fork workers, which end with the group.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=setting.environment, cwd=scratch,
                start_new_session=True,
            )  # fmt: skip
        target = peer.target(setting.port)
        try:
            deadline = time.monotonic() + START_PATIENCE_S
            while True:
                try:
                    asyncio.run(first_answer(target, peer.request(target, workload.asked[0])))
                    break
                except (CallFailed, OSError) as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        said = log_path.read_text(errors="replace").strip()[-1200:]
                        raise service.NotRun(f"does not run ({error}):\n{said}") from error
                time.sleep(0.5)
            yield target
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole session, then SIGKILL to what is left of it."""
    for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.3)


def measure_peer(peer: Peer, python: Path, workload: Workload, options: argparse.Namespace) -> Figures:
    with started(peer, python, workload, options.threads) as target, tempfile.TemporaryDirectory() as directory:
        requests = [peer.request(target, group) for group in workload.asked]
        scores = [peer.scores(asyncio.run(first_answer(target, request)))[0] for request in requests[:4]]
        plan = Path(directory) / "plan.json"
        write_plan(plan, target, requests)
        command = [sys.executable, str(HERE / "load.py"), str(plan), str(options.callers)]
        command += [str(options.warm_up), str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise service.NotRun(f"the load failed: {done.stderr.strip()[-600:]}")
        seen = json.loads(done.stdout)
        if seen["failures"]:
            print(f"  {peer.name}: {seen['failures']} failures, the first: {seen['first_failure'][:200]}", flush=True)
        rate = seen["requests_per_s"] * workload.pairs_a_call
        return Figures(rate, seen["p50_ms"], seen["p99_ms"], seen["failures"], seen["generator_cpu_share"], scores)


def measure_ours(precision: str, workload: Workload, work: Path, options: argparse.Namespace) -> Figures:
    store = work / f"{workload.base.name}-{precision}"
    service.export(workload.base, store, max_length=workload.max_length, precision=precision)
    texts = models.write_rows(work / f"{workload.name}.jsonl", workload.asked)
    serve_args = ("--intra-op-threads", str(options.threads), *options.serve_args.split())
    with service.serving(store, *serve_args) as served:
        with RewardloopClient(served.address, timeout_s=60) as client:
            results = [client.score(group.prompt, group.responses) for group in workload.asked[:4]]
        run = service.load(
            served, "--callers", str(options.callers), "--warm-up", str(options.warm_up),
            "--seconds", str(options.seconds), "--texts", str(texts),
        )  # fmt: skip
    latency, failed = run["latency_ms"], sum(run["failures"].values())
    scores = [result.scores[0].logit for result in results]
    return Figures(run["responses_per_s"], latency["p50"], latency["p99"], failed, run["generator_cpu_share"], scores)


def report(workload: Workload, rounds: dict[str, list[Figures]], reference: str) -> None:
    """Medians over the rounds; ratios are within a round, then their median."""
    ours = rounds.get(reference, [])
    rows: list[list[object]] = [list(COLUMNS)]
    for name, figures in rounds.items():
        if not figures:
            continue
        medians = {
            field: statistics.median(getattr(f, field) for f in figures)
            for field in ("pairs_per_s", "p50_ms", "p99_ms", "generator_cpu_share")
        }
        failed = sum(f.failures for f in figures)
        if ours:
            ratios = [a.pairs_per_s / b.pairs_per_s for a, b in zip(ours, figures, strict=False)]
            difference = max(abs(a - b) for a, b in zip(ours[0].scores, figures[0].scores, strict=True))
            compared = [statistics.median(ratios), f"{difference:.1e}"]
        else:
            compared = ["", ""]
        rows.append([name, *medians.values(), failed, *compared])
    print(
        f"\n{workload.name}: medians of {max(map(len, rounds.values()))} rounds"
        + (f"; we = {reference}" if reference else "")
    )
    service.print_rows(rows)


def choose_workload(options: argparse.Namespace, work: Path) -> Workload:
    if options.workload == "groups":
        return Workload("groups", models.decoder_base(work), 512, models.groups(400, 8, 60, 32))
    pairs = models.pairs(options.workload, 512, options.data)
    return Workload(options.workload, models.encoder_base(work), models.MAX_LENGTH, models.as_groups(pairs))


def main() -> None:
    parser = arguments.parser(__doc__, seconds=15.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=None, help="default: 64, of groups 4")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and ONNX Runtime")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--workload", choices=("real", "short", "groups"), default="real")
    parser.add_argument("--data", type=Path, default=None, help="directory with alpacaeval_test.jsonl.gz")
    parser.add_argument("--venvs", type=Path, default=None, help="where environments are (default: --work)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=INTERPRETER",
        help="for a peer's environment instead of this one; pytriton needs a 3.11 before 3.11.6, such as Debian's",
    )  # fmt: skip
    parser.set_defaults(precision="float32,int8")
    options = parser.parse_args()
    options.callers = options.callers or (4 if options.workload == "groups" else 64)
    interpreters = dict(pair.split("=", 1) for pair in options.python)
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        workload = choose_workload(options, work)
        peers = [PEERS[name] for name in options.peers.split(",") if name]
        ours = [f"rewardloop {precision}" for precision in options.precision.split(",") if precision]
        rounds: dict[str, list[Figures]] = {name: [] for name in (*ours, *(peer.name for peer in peers))}
        broken: set[str] = set()
        for number in range(1, options.rounds + 1):
            for name in rounds:
                if name in broken:
                    continue
                try:
                    if name in ours:
                        figures = measure_ours(name.split()[1], workload, work, options)
                    elif workload.name == "groups" and not PEERS[name].takes_groups:
                        raise service.NotRun("has no call for a prompt with several responses of a decoder")
                    else:
                        python = environment(
                            PEERS[name], options.venvs or work / "venvs", interpreters.get(name, sys.executable)
                        )
                        figures = measure_peer(PEERS[name], python, workload, options)
                except service.NotRun as reason:
                    broken.add(name)
                    print(f"{name} {reason}", flush=True)
                    continue
                rounds[name].append(figures)
                print(
                    f"round {number}, {name}: {figures.pairs_per_s:.1f} pairs/s, p99 {figures.p99_ms:.0f} ms",
                    flush=True,
                )
        report(workload, rounds, next((name for name in ours if rounds[name]), ""))


if __name__ == "__main__":
    main()
