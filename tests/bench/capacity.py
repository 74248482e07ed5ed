"""What a deployment takes: tokens a second of CPU, memory of Redis and bytes of the ledger for a million signals.

    python tests/bench/capacity.py --work DIR --data ../shared/data

The real service in its own process; the tokens are put over its CPU time, which a busy machine distorts least.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from models import MAX_LENGTH, Pair, encoder_base, pairs
from service import Service, end, export, load, print_machine, print_rows, serving

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_client import Feedback, RewardloopClient
from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import EmbeddedRedis

_BATCH = 1000
_MIB = 2**20
_PROGRAM = (sys.executable, "-m", "rewardloop_cli.main")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where models are kept for the next run")
    parser.add_argument("--data", type=Path, help="a directory with alpacaeval_test.jsonl.gz, for real texts")
    parser.add_argument("--signals", type=int, default=100_000, help="signals to record")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of tokens")
    parser.add_argument("--only", choices=("tokens", "signals"), help="one of the two parts")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print_machine()
    if options.only != "signals":
        columns = ("precision", "texts", "tokens/s of CPU", "responses/s of CPU", "tokens a response")
        for row in tokens(options):
            print_rows([columns, row])
    if options.only != "tokens":
        for name, value in signals(options):
            print(f"{name}: {value}", flush=True)


def tokens(options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    """Closed loop of 4 callers, groups of 4, one thread of ONNX Runtime: tokens over the server's own CPU seconds."""
    base = encoder_base(options.work)
    for precision in ("float32", "int8"):
        store = options.work / f"capacity-{precision}"
        export(base, store, max_length=MAX_LENGTH, precision=precision)
        for texts in ("short", "real"):
            with serving(store, "--intra-op-threads", "1", "--no-spin") as service:
                before = totals(service)
                options_of_load = ("--lengths", texts, "--callers", "4", "--seconds", str(options.seconds))
                run = load(service, *options_of_load, "--warm-up", "0")
                spent, read, rows = (late - early for late, early in zip(totals(service), before, strict=True))
            assert set(run["failures"]) <= {"QUEUE_FULL"}, run["failures"]  # refused before any work on it
            yield precision, texts, round(read / spent), round(rows / spent, 1), round(read / rows, 1)


def totals(service: Service) -> tuple[float, float, float]:
    """CPU seconds of the process; tokens and sequences that its engine read."""
    samples = {sample.name: sample.value for sample in service.samples()}
    names = ("process_cpu_seconds_total", "rewardloop_batch_tokens_sum", "rewardloop_batch_rows_sum")
    return samples[names[0]], samples[names[1]], samples[names[2]]


def events(count: int, texts: list[Pair]) -> Iterator[list[feedback_pb2.FeedbackEvent]]:
    """Choices between two answers to a prompt, by 1,000 people, in batches.

    Each answer's words are shuffled anew: repeated texts would compress as no product's do.
    """
    chance = random.Random(0)

    def shuffled(text: str) -> str:
        words = text.split(" ")
        return " ".join(chance.sample(words, len(words)))

    for start in range(0, count, _BATCH):
        batch = []
        for _ in range(min(_BATCH, count - start)):
            one, other = chance.sample(texts, 2)
            responses = [shuffled(one.response), shuffled(other.response)]
            event = Feedback.choice(prompt=one.prompt, responses=responses, chosen=0, rejected=1)
            event.annotator_id = f"person-{chance.randrange(1000)}"
            batch.append(event)
        yield batch


def signals(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Record through the service, then archive by the trainer; what Redis and the disk hold after each."""
    texts = pairs("real", 2000, options.data)
    millions = options.signals / 1e6
    with recording(options.work) as (directory, server, client, address):
        empty = client.info("memory")["used_memory"]
        sent = written = 0
        with RewardloopClient(address, timeout_s=120) as services:
            batches = list(events(options.signals, texts))
            started = time.monotonic()
            for batch in batches:
                outcomes = services.record_batch(batch)
                assert all(getattr(outcome, "stream_id", "") for outcome in outcomes)
                sent += len(batch)
                written += sum(event.ByteSize() for event in batch)
        seconds = time.monotonic() - started
        full = client.info("memory")["used_memory"]
        stream = client.memory_usage(keys.FEEDBACK_STREAM, samples=0)
        yield (
            "signals recorded",
            f"{sent:,} in {seconds:.0f} s ({sent / seconds:,.0f}/s, one caller, batches of {_BATCH})",
        )
        yield "bytes of a signal on the wire, mean", f"{written / sent:,.0f}"
        yield "Redis memory, all", f"{(full - empty) / millions / _MIB:,.0f} MiB"
        yield "of which the stream", f"{stream / millions / _MIB:,.0f} MiB"
        yield "append-only file", f"{_bytes(server.data_dir) / millions / _MIB:,.0f} MiB"

        ledger = directory / "ledger"
        command = [*_PROGRAM, "train", "--once", "--no-reward-rounds", "--no-policy-rounds", "--server", address]
        command += [
            "--redis-url",
            server.url,
            "--store",
            str(directory / "models"),
            "--work-dir",
            str(directory / "work"),
        ]
        command += ["--archive", str(ledger), "--metrics-port", "0", "--log-level", "error"]
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        files = list(ledger.rglob("*.parquet"))
        yield "archiving", f"{sent / seconds:,.0f} signals/s, start of the process included"
        yield "ledger", f"{_bytes(ledger) / millions / _MIB:,.0f} MiB in {len(files) / millions:,.0f} files"
        after = client.info("memory")["used_memory"]
        left = int(client.xlen(keys.FEEDBACK_STREAM))
        yield (
            "Redis memory once archived",
            f"{(after - empty) / millions / _MIB:,.0f} MiB ({left:,} signals not yet trimmed)",
        )


@contextmanager
def recording(work: Path) -> Iterator[tuple[Path, EmbeddedRedis, redis.Redis, str]]:
    """A serving process without a model, and its Redis; a directory that goes with them."""
    with tempfile.TemporaryDirectory(prefix="rewardloop-capacity-", dir=work) as name:
        directory = Path(name)
        server = EmbeddedRedis(directory / "redis")
        server.start()
        address = f"127.0.0.1:{free_port()}"
        command = [*_PROGRAM, "serve", "--store", str(directory / "models"), "--redis-url", server.url]
        process = subprocess.Popen([*command, "--listen", address, "--metrics-port", "0", "--log-level", "warning"])
        try:
            with RewardloopClient(address, timeout_s=60, max_attempts=200) as client:
                while not client.health("rewardloop.v1.FeedbackService"):
                    time.sleep(0.1)
            yield directory, server, redis.Redis.from_url(server.url), address
        finally:
            end(process)
            server.stop()


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
