"""Learns from real preferences through the whole system, and asks the scoring RPC how well.

Starts ``rewardloop up`` with MiniLM as the first reward model, imports AlpacaEval's training pairs with
``rewardloop feedback import``, waits until the trainer swapped its new version in, and scores the held-out pairs.

    python tests/bench/real_preferences.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import minilm
import numpy as np

from rewardloop_client import RewardloopClient, RewardloopError, ScoreGroup
from rewardloop_data.source_file import SourceFile
from rewardloop_local.ports import free_port

RESAMPLES = 2_000


@dataclass(frozen=True)
class Comparison:
    """``chosen`` beat ``rejected`` in the eyes of the labels' source."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def is_shorter_chosen(self) -> bool:
        return len(self.chosen) < len(self.rejected)


def read_rows(path: Path) -> list[dict[str, object]]:
    return [cast(dict[str, object], line.value()) for line in SourceFile.of(path).lines()]


def alpacaeval(path: Path) -> list[Comparison]:
    return [Comparison(str(r["prompt"]), str(r["chosen"]), str(r["rejected"])) for r in read_rows(path)]


def pandalm_majority(path: Path) -> list[Comparison]:
    """Comparisons on which a majority of the annotators prefers one response, and neither response is empty."""
    found = []
    for row in read_rows(path):
        votes = Counter(str(a["choice"]) for a in row["annotations"])  # type: ignore[attr-defined]
        choice, count = votes.most_common(1)[0]
        if choice != "tie" and count * 2 > votes.total():
            chosen = int(choice)
            responses = row["responses"]
            assert isinstance(responses, list)
            if not all(text.strip() for text in responses):
                continue  # an empty response cannot be scored
            found.append(Comparison(str(row["prompt"]), responses[chosen], responses[1 - chosen]))
    return found


def is_right(client: RewardloopClient, comparisons: Sequence[Comparison]) -> np.ndarray:
    """Whether the chosen response scores higher, by comparison; asked through ScoreBatch."""
    right = []
    for start in range(0, len(comparisons), 32):
        part = comparisons[start : start + 32]
        groups = [ScoreGroup(c.prompt, [c.chosen, c.rejected]) for c in part]
        for outcome in client.score_batch(groups, timeout_s=300):
            if isinstance(outcome, RewardloopError):
                raise outcome
            right.append(outcome.scores[0].score > outcome.scores[1].score)
    return np.array(right)


def accuracy(right: np.ndarray, comparisons: Sequence[Comparison]) -> str:
    """Accuracy with a 95% bootstrap interval clustered by prompt."""
    by_prompt: dict[str, list[bool]] = {}
    for ok, comparison in zip(right, comparisons, strict=True):
        by_prompt.setdefault(comparison.prompt, []).append(bool(ok))
    clusters = list(by_prompt.values())
    rng = random.Random(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(clusters, k=len(clusters))
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{right.mean():.3f} [{low:.3f}, {high:.3f}] (n={len(right)})"


def report(name: str, client: RewardloopClient, comparisons: Sequence[Comparison]) -> None:
    right = is_right(client, comparisons)
    shorter = np.array([c.is_shorter_chosen for c in comparisons])
    print(f"{name}: overall {accuracy(right, comparisons)}")
    part = [c for c in comparisons if c.is_shorter_chosen]
    print(f"{name}: where the shorter answer won {accuracy(right[shorter], part)}")
    longer = np.array([len(c.chosen) > len(c.rejected) for c in comparisons])
    print(f"{name}: longer-is-better baseline {longer.mean():.3f}", flush=True)


def wait_for_version(client: RewardloopClient, version: int, up: subprocess.Popen[bytes], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if up.poll() is not None:
            raise SystemExit("rewardloop up ended early")
        try:
            if int(client.get_version("reward").version) >= version:
                return
        except RewardloopError:
            pass  # not up yet: the deadline decides
        time.sleep(1)
    raise SystemExit(f"version {version} was not served within {patience_s:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the alpacaeval and pandalm files")
    parser.add_argument("--work", type=Path, default=None, help="where models and logs go (default: a temporary one)")
    parser.add_argument("--export-args", default="--max-length 256 --heads 4")
    averaged = "--reward.length-balance --reward.length-control 0.6 --reward.averaged-runs 3"
    parser.add_argument("--train-args", default=averaged)
    parser.add_argument("--patience-s", type=float, default=7200)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="rewardloop-bench-"))
    base = minilm.fetch(work)
    train = options.data / "alpacaeval_train.jsonl.gz"
    address = f"127.0.0.1:{free_port()}"
    rewardloop = [sys.executable, "-m", "rewardloop_cli.main"]
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; work in {work}", flush=True)
    up_args = ["--data", str(work / "data"), "--listen", address, "--reward-base", str(base)]
    up_args += ["--metrics-port", "0", "--trainer-metrics-port", "0", "--policy-metrics-port", "0"]
    train_args = f"--reward-min-signals 7000 {options.train_args}"
    up_args += [f"--export-args={options.export_args}", f"--train-args={train_args}"]
    started = time.monotonic()
    up = subprocess.Popen([*rewardloop, "up", *up_args])
    try:
        with RewardloopClient(address, timeout_s=10) as client:
            wait_for_version(client, 1, up, 300)
            test = alpacaeval(options.data / "alpacaeval_test.jsonl.gz")
            pandalm = pandalm_majority(options.data / "pandalm_annotations.jsonl.gz")
            print(f"up after {time.monotonic() - started:.0f} s", flush=True)
            report("alpacaeval, untrained head", client, test)
            imported = time.monotonic()
            command = [*rewardloop, "feedback", "import", str(train), "--server", address, "--source", "llm_judge"]
            subprocess.run([*command, "--side-dir", str(work)], check=True)
            print(f"import took {time.monotonic() - imported:.1f} s", flush=True)
            wait_for_version(client, 2, up, options.patience_s)
            print(f"trained and swapped {(time.monotonic() - imported) / 60:.1f} minutes after the import began")
            version = client.get_version("reward")
            print({name: round(value, 4) for name, value in sorted(version.metrics.items())}, flush=True)
            report("alpacaeval test", client, test)
            report("pandalm, majority of 3 people", client, pandalm)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)


if __name__ == "__main__":
    main()
