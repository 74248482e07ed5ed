"""What a policy learns from the labels of a judge alone, in the demo's world (Lee et al. 2023, RLAIF).

    python tests/bench/rlaif.py --work DIR --seeds 3

The starter gives two answers to each question. `rewardloop judge` asks an endpoint about each pair in both orders; no
person judges any. The endpoint likes what the hidden taste likes, but takes the response shown first in a share of the
pairs, and errs in a share of the others. A fresh copy of the starter learns from the labels by DPO. The hidden taste,
which no label has told anything of but through the endpoint, compares its answers to held-out questions with the
starter's. With --control another copy learns from as many labels that are drawn at random.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewardloop_demo.taste import Interval, Taste  # before the trainer, where the taste may not be imported

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from gold_judge import Choice
from gold_world import answers_of, as_pair, starter_in
from support.judge_endpoint import biased, judge_endpoint

from rewardloop_local import corpus
from rewardloop_trainer.commands.judge.command import main as judge
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings

_DPO: dict[str, Any] = {
    "beta": 0.1,
    "learning_rate": 1e-3,
    "batch_pairs": 16,
    "checkpoint_every_steps": 0,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the starter and the labels are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=3_000, help="pairs that the judge is asked about")
    parser.add_argument("--judged", type=int, default=684, help="held-out questions that the taste compares")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--position", type=float, default=0.3, help="share in which the endpoint takes the first")
    parser.add_argument("--error", type=float, default=0.2, help="share of the others in which it errs")
    parser.add_argument("--control", action="store_true", help="also learn from labels by lot")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.process_time()
    print("labels  seed  labelled  decided  right  win rate against the starter [95%]")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = [row for seed in seeds for row in compare(options, seed)]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{time.process_time() - began:.0f} CPU seconds")
    return 0


def compare(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Let one policy learn from the judge's labels and one from labels by lot."""
    starter, taste = starter_in(options.work), Taste(seed)
    directory = options.work / f"rlaif-{seed}-{options.pairs}"
    pairs = answered(starter, seed, options.pairs, directory)
    choices = labelled(pairs, taste, directory, options.position, options.error)
    heldout = [question.text for question in corpus.questions(seed, held_out=True)][: options.judged]
    rivals = first_answers(starter.policy(), starter.encoder, heldout, 2_000 + seed)
    lots = random.Random(f"lots/{seed}")
    by_lot = [Choice(c.prompt, *lots.sample((c.chosen, c.rejected), 2)) for c in choices]
    rows = []
    for name, learned in (("judge", choices), ("by lot", by_lot))[: 1 + options.control]:
        policy = starter.policy()
        settings = DpoSettings.model_validate(_DPO | {"epochs": options.epochs, "seed": seed})
        train_policy(policy, starter.encoder, [as_pair(choice) for choice in learned], (), settings, RunControl())
        texts = first_answers(policy, starter.encoder, heldout, 3_000 + seed)
        won: Interval = taste.win_rate(heldout, texts, rivals)
        right = sum(taste.utility(c.prompt, c.chosen) > taste.utility(c.prompt, c.rejected) for c in learned)
        rows.append(
            {
                "labels": name,
                "seed": seed,
                "labelled": len(pairs),
                "decided": len(learned),
                "right": right / len(learned),
                "win_rate": won.mean,
                "lower": won.low,
                "upper": won.high,
            }
        )
        row = rows[-1]
        shown = f"{row['labelled']:>8}  {row['decided']:>7}  {row['right']:>5.3f}"
        print(f"{name:<6}  {seed:>4}  {shown}  {won.mean:.3f} [{won.low:.3f}, {won.high:.3f}]", flush=True)
    return rows


def answered(starter: Any, seed: int, count: int, directory: Path) -> list[tuple[str, str, str]]:
    """Return questions with two different answers of the starter, the same in every call."""
    kept = directory / "pairs.jsonl"
    if not kept.exists():
        directory.mkdir(parents=True, exist_ok=True)
        questions = [question.text for question in corpus.questions(seed)]
        random.Random(f"rlaif/{seed}").shuffle(questions)
        questions = [questions[i % len(questions)] for i in range(count + count // 4)]
        said = answers_of(starter.policy(), starter.encoder, questions, seed=1_000 + seed, responses=2)
        found = {(q, a.text, b.text): None for q, (a, b) in zip(questions, said, strict=True)}
        usable = [each for each in found if each[1] != each[2] and each[1].strip() and each[2].strip()][:count]
        kept.write_text("".join(json.dumps({"prompt": q, "responses": [a, b]}) + "\n" for q, a, b in usable))
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    return [(row["prompt"], *row["responses"]) for row in rows]


def labelled(
    pairs: Sequence[tuple[str, str, str]], taste: Taste, directory: Path, position: float, error: float
) -> list[Choice]:
    """Let `rewardloop judge` label the pairs by an endpoint, and return what it decided."""

    def better(shown: str, a: str, b: str) -> bool:
        question = shown.removeprefix("user: ")
        return taste.utility(question, a) > taste.utility(question, b)

    out = directory / "labels.jsonl"
    with judge_endpoint(biased(better, position, error)) as endpoint:
        flags = ["--endpoint", endpoint.url, "--model", "taste", "--data", str(directory / "pairs.jsonl")]
        flags += ["--out", str(out), "--work-dir", str(directory / "work"), "--metrics-port", "0", "--once"]
        status = judge([*flags, "--calls-a-day", str(10 * len(pairs)), "--log-level", "warning"])
    if status != 0:
        raise SystemExit(f"rewardloop judge ended with status {status}")
    found = []
    for line in out.read_text().splitlines():
        row = json.loads(line)
        if (choice := row["annotations"][0]["choice"]) != "tie":
            found.append(Choice(row["prompt"][0]["content"], row["responses"][choice], row["responses"][1 - choice]))
    return found


def first_answers(policy: Any, encoder: Any, questions: Sequence[str], seed: int) -> list[str]:
    return [said.text for (said,) in answers_of(policy, encoder, questions, seed=seed)]


if __name__ == "__main__":
    raise SystemExit(main())
