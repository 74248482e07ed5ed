"""What `rewardloop evaluate` says of a small reward model on people's and judges' real preferences.

    python tests/bench/evaluate_real.py --shared ../shared/data --work DIR

A linear start on MiniLM learns from AlpacaEval's training pairs, and from arguments and one-liners that are not held
out. Each hold-out has a report of its own under DIR/reports, and a line here: agreement with an interval, beside the
longer answer, a bag of words that learned the same, and people's agreement with each other; how often it is right
where the shorter answer won; calibration. The over-optimisation curve is that of the best of several answers, by a
second model from other pairs. Texts are short and rows few (flags), and MiniLM reads each text once, so that it ends
in minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arguments as options
import torch
from curve_data import WORLDS, World, read_rows
from learning_curve import Model, new_model
from remembering import remembered

from rewardloop.formats.store import TOKENIZER, TORCH, Manifest
from rewardloop_trainer.commands.evaluate.command import main as evaluate
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

HOLD_OUTS = ("alpacaeval_test", "pandalm", "arguments", "humour")
_LEARNED_FROM = {"alpacaeval_test": "alpacaeval", "pandalm": "alpacaeval", "arguments": "arguments", "humour": "humour"}
_ANSWERS = 6  # to each prompt of the over-optimisation curve


def held_out(name: str, shared: Path, most_characters: int) -> list[dict[str, Any]]:
    """The rows of a hold-out as `rewardloop feedback import` reads them, with each person's choice if it is known."""
    file = {"arguments": "ukpconvarg1_pairs", "humour": "humour_pairs", "pandalm": "pandalm_annotations"}.get(
        name, name
    )
    rows = read_rows(shared / f"{file}.jsonl.gz")
    if name == "arguments":
        topics = sorted({_topic(row) for row in rows})
        random.Random(0).shuffle(topics)
        held = set(topics[0::4])  # as `curve_data.arguments` with seed 0
        rows = [row for row in rows if _topic(row) in held]
    elif name == "humour":
        lines = sorted({text for row in rows for text in row["responses"]})
        kept = set(random.Random(0).sample(lines, round(0.3 * len(lines))))
        rows = [row for row in rows if kept.issuperset(row["responses"])]
    found = []
    for row in rows:
        texts = row.get("responses") or [row["chosen"], row["rejected"]]
        if not all(0 < len(text.strip()) <= most_characters for text in texts):
            continue
        if "responses" not in row:
            found.append({"prompt": row["prompt"], "chosen": texts[0], "rejected": texts[1]})
            continue
        said = row.get("annotations") or [
            {"annotator": f"{row['id']}-{i}", "choice": side} for side, n in enumerate(row["votes"]) for i in range(n)
        ]
        people = [{"annotator": str(each["annotator"]), "choice": each["choice"]} for each in said]
        found.append({"prompt": row["prompt"], "responses": texts, "annotations": people})
    return found


def learned(pairs: Sequence[Pair], directory: Path, work: Path, most_tokens: int) -> None:
    """Learn from the pairs, and write the model as the directory of a version."""
    made: Model = new_model(World((), {}), work, most_tokens, 0, learns=False)
    settings = RewardTraining.model_validate({"epochs": 0, "checkpoint_every_steps": 0})
    train_reward(made.model, made.encoder, pairs, [], settings)
    directory.mkdir(parents=True, exist_ok=True)
    made.model.save(directory / TORCH)
    made.encoder.tokenizer.save(str(directory / TOKENIZER))
    heads = made.model.heads.out_features
    about = {"text_format": made.encoder.format.to_json(), "max_length": most_tokens, "heads": heads, "base": "MiniLM"}
    (directory / "manifest.json").write_text(Manifest(model="reward", version="1", **about).to_json())


def answers_to(shared: Path, most_characters: int, prompts: int) -> list[dict[str, Any]]:
    """Prompts of AlpacaEval with the answers of several models each."""
    by_prompt: dict[str, dict[str, None]] = defaultdict(dict)
    for row in read_rows(shared / "alpacaeval_test.jsonl.gz"):
        for text in (row["chosen"], row["rejected"]):
            if 40 < len(text) <= most_characters:
                by_prompt[row["prompt"]][text] = None
    found = [{"prompt": p, "responses": list(t)[:_ANSWERS]} for p, t in by_prompt.items() if len(t) >= _ANSWERS]
    return found[:prompts]


def write(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def line(name: str, report: Path) -> str:
    """The line of a report."""
    found = json.loads((report / "report.json").read_text())
    figures = found["figures"]
    (section,) = (each for each in found["sections"] if each["name"] == "agreement")
    (table,) = (part for part in section["parts"] if part.get("name") == "agreement-table")
    accuracy = {row[0]: row[1] for row in table["rows"]}
    baselines = [shown(accuracy[each]) for each in ("the longer answer", "bag of words")]
    shorter = [value for key, value in figures.items() if key.startswith("accuracy_in_") and key.endswith("shorter")]
    cells = [
        f"{found['facts']['held-out choices']:,}",
        f"{found['facts']['held-out prompts']:,}",
        shown(next(iter(accuracy.values()))),
        *baselines,
        figure(figures, "ceiling"),
        f"{min(shorter):.3f}" if shorter else "-",
        figure(figures, "calibration_error"),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def shown(cell: Any) -> str:
    value, low, high = (cell[key] for key in ("value", "lower", "upper"))
    bounds = "-" if low is None or high is None or low < -1 else f"{low:.3f}, {high:.3f}"
    return f"{value:.3f} [{bounds}]"


def figure(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else "-"


def _topic(row: dict[str, Any]) -> str:
    return str(row["prompt"]).partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="directory of people's data")
    parser.add_argument("--work", type=Path, required=True, help="where MiniLM, what it read, and the reports are kept")
    parser.add_argument("--learned", type=int, default=60, help="pairs of each kind that the model learns from")
    parser.add_argument("--rows", type=int, default=50, help="most rows of each hold-out")
    parser.add_argument("--answered", type=int, default=12, help="prompts of the over-optimisation curve")
    parser.add_argument("--most-characters", type=int, default=500, help="of an answer; longer ones are left out")
    parser.add_argument("--most-tokens", type=int, default=128, help="of prompt and answer, which are cut to them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun, files = time.process_time(), asked.work / "files"
    with options.work_directory(asked.work) as work, remembered(work / "read.pt", by_all=True):
        worlds = {name: WORLDS[name](0, work, asked.shared) for name in sorted(set(_LEARNED_FROM.values()))}
        short = {
            name: [
                r
                for r in world.train
                if isinstance(r, Pair) and max(map(len, (r.chosen, r.rejected))) <= asked.most_characters
            ]
            for name, world in worlds.items()
        }
        parts = [{name: pairs[i * asked.learned :][: asked.learned] for name, pairs in short.items()} for i in (0, 1)]
        learned([pair for part in parts[0].values() for pair in part], work / "ours", work, asked.most_tokens)
        learned(parts[1]["alpacaeval"], work / "judge", work, asked.most_tokens)
        said = write(files / "answers.jsonl", answers_to(asked.shared, asked.most_characters, asked.answered))
        lines, last = [], {}
        for name in HOLD_OUTS:
            rows = held_out(name, asked.shared, asked.most_characters)
            random.Random(0).shuffle(rows)
            data = write(files / f"{name}.jsonl", rows[: asked.rows])
            seen = [
                {"prompt": pair.prompt[0].content, "chosen": pair.chosen, "rejected": pair.rejected}
                for pair in parts[0][_LEARNED_FROM[name]]
            ]
            flags = ["--directory", str(work / "ours"), "--data", str(data), "--out", str(work / "reports" / name)]
            flags += ["--train", str(write(files / f"{name}_train.jsonl", seen)), "--torch-threads", "1"]
            if name == HOLD_OUTS[0]:
                flags += ["--answers", str(said), "--judges", str(work / "judge"), "--prompts", str(asked.answered)]
            if status := evaluate(flags):
                raise SystemExit(status)
            lines.append(line(name, work / "reports" / name))
            last |= {name: json.loads((work / "reports" / name / "report.json").read_text())["figures"]}
    names = "choices | prompts | ours [95%] | longer [95%] | bag of words [95%] | ceiling | where the shorter won | ECE"
    print(f"\n| hold-out | {names} |\n|{' --- |' * 9}", *lines, sep="\n")
    over = figure(last[HOLD_OUTS[0]], "over_optimisation_loss")
    print(f"\nwhat the other model's score loses from its peak to the best of {_ANSWERS}: {over}")
    print(f"{time.process_time() - begun:.0f} s of CPU")
    for name, figures in last.items():
        slices = [f"{key.removeprefix('accuracy_in_')} {v:.3f}" for key, v in figures.items() if "accuracy_in_" in key]
        print(f"slices of {name}: {', '.join(slices)}; overfit gap {figure(figures, 'overfit_gap')}")


if __name__ == "__main__":
    main()
