"""Lets the demo's hidden taste judge answers. It runs as a process of its own: training must not read the taste.

python tests/bench/curve_users.py SEED ANSWERS.json JUDGED.json
"""

from __future__ import annotations

import json
import random
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rewardloop_demo.taste import Taste
from rewardloop_demo.users import SimulatedUsers
from rewardloop_local import corpus


def signal(event: Any, prompt: str, texts: list[str]) -> dict[str, Any]:
    """An event as a row: what kind it is, and the texts that it compares or labels."""
    kind = str(event.WhichOneof("signal"))
    row: dict[str, Any] = {"kind": kind, "prompt": prompt, "annotator": event.annotator_id}
    if kind == "choice":
        return row | {"chosen": texts[event.choice.chosen], "rejected": texts[event.choice.rejected]}
    if kind == "edit":
        return row | {"chosen": event.edit.edited_text, "rejected": texts[event.edit.response]}
    if kind == "tie":
        return row | {"first": texts[event.tie.first], "second": texts[event.tie.second]}
    if kind == "ranking":
        return row | {"ranked": [texts[i] for i in event.ranking.order]}
    label = float(event.thumb.up) if kind == "thumb" else (event.rating.value - 1) / 4
    return row | {"response": texts[0], "label": label}


def main() -> None:
    seed, answers, judged = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    asked = json.loads(answers.read_text())
    taste, chance = Taste(seed), random.Random(f"curve/{seed}")
    users = SimulatedUsers(cast(Any, None), taste, [q.text for q in corpus.questions(seed)], seed=seed)
    signals = []
    for kind, prompt, texts in asked["asked"]:
        generation = SimpleNamespace(generation_id="g", candidates=[SimpleNamespace(text=text) for text in texts])
        event = users._judge(kind, prompt, cast(Any, generation), chance)
        if event is not None:
            signals.append(signal(event, prompt, texts))
    held_out, pairs = [], []
    for prompt, texts in asked["held_out"]:
        for both in combinations(dict.fromkeys(text for text in texts if text.strip()), 2):
            loser = taste.prefers(prompt, *both, chance)
            held_out.append({"prompt": prompt, "chosen": both[loser], "rejected": both[1 - loser]})
            pairs.append((prompt, *both))
    ceiling = taste.agreement_ceiling(pairs)
    judged.write_text(json.dumps({"signals": signals, "held_out": held_out, "ceiling": ceiling}))


if __name__ == "__main__":
    main()
