"""The signals of the learning curves: of the demo's simulated users, and of people, split so that nothing leaks."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardloop.formats.text import Turn
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList, Record, TiedPair, comparisons_in

ASKED = 11_500  # of which about 10,700 end in a signal
_SHARES = {"choice": 0.75, "thumb": 0.08, "ranking": 0.05, "tie": 0.05, "rating": 0.04, "edit": 0.03}
_HELD_OUT_LINES = 0.3


@dataclass(frozen=True)
class World:
    """Signals to learn from, in their order, and pairs to measure on. ``tests`` has them by name.

    ``ceiling``: the accuracy that the labels' noise allows, NaN if nobody knows it. ``starter``: the demo's models.
    """

    train: Sequence[Record]
    tests: Mapping[str, Sequence[Pair]]
    ceiling: float = math.nan
    starter: Path | None = None


def demo(seed: int, work: Path, _: Path) -> World:
    """The demo's users on the starter's answers; made once for each seed and kept in ``work``."""
    directory = work / f"demo-{seed}"
    judged = directory / "judged.json"
    if not judged.exists():
        answers = directory / "answers.json"
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.write_text(json.dumps(_answers(seed, directory)))
        script = Path(__file__).with_name("curve_users.py")
        subprocess.run([sys.executable, str(script), str(seed), str(answers), str(judged)], check=True)
    found = json.loads(judged.read_text())
    train = [_record(row, f"s{i}") for i, row in enumerate(found["signals"])]
    held_out = [_pair(row["prompt"], row["chosen"], row["rejected"]) for row in found["held_out"]]
    return World(train, {"demo": held_out}, found["ceiling"], directory)


def humour(seed: int, _: Path, shared: Path) -> World:
    """Pairs of one-liners. A test pair has two lines of which no training pair has either."""
    rows = read_rows(shared / "humour_pairs.jsonl.gz")
    lines = sorted({text for row in rows for text in row["responses"]})
    held_out = set(random.Random(seed).sample(lines, round(_HELD_OUT_LINES * len(lines))))
    train = [row for row in rows if held_out.isdisjoint(row["responses"])]
    test = [row for row in rows if held_out.issuperset(row["responses"])]
    return World(_shuffled(map(_judged, train), seed), {"humour": [_judged(row) for row in test]})


def arguments(seed: int, _: Path, shared: Path) -> World:
    """Pairs of arguments. A quarter of the topics is for the test, another one with each seed."""
    rows = read_rows(shared / "ukpconvarg1_pairs.jsonl.gz")
    topics = sorted({_topic(row) for row in rows})
    random.Random(0).shuffle(topics)
    held_out = set(topics[seed % 4 :: 4])
    train = [_judged(row) for row in rows if _topic(row) not in held_out]
    return World(_shuffled(train, seed), {"arguments": [_judged(row) for row in rows if _topic(row) in held_out]})


def alpacaeval(seed: int, _: Path, shared: Path) -> World:
    """AlpacaEval's training pairs; tested on its test pairs and on PandaLM, which is never trained on."""
    train, test = (read_rows(shared / f"alpacaeval_{part}.jsonl.gz") for part in ("train", "test"))
    both = [
        [_pair(r["prompt"], r["chosen"], r["rejected"], f"{i}") for i, r in enumerate(part)] for part in (train, test)
    ]
    tests = {"alpacaeval": both[1], "pandalm": pandalm(read_rows(shared / "pandalm_annotations.jsonl.gz"))}
    return World(_shuffled(both[0], seed), tests)


def pandalm(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Comparisons on which most annotators prefer one response, and neither response is empty."""
    found = []
    for row in rows:
        choice, count = Counter(str(each["choice"]) for each in row["annotations"]).most_common(1)[0]
        if choice != "tie" and 2 * count > len(row["annotations"]) and all(text.strip() for text in row["responses"]):
            chosen = int(choice)
            found.append(_pair(row["prompt"], row["responses"][chosen], row["responses"][1 - chosen]))
    return found


WORLDS: Mapping[str, Callable[[int, Path, Path], World]] = {
    "demo": demo,
    "humour": humour,
    "arguments": arguments,
    "alpacaeval": alpacaeval,
}


def read_rows(path: Path) -> list[Any]:
    """Raises `UnreadableFile` if the file is absent."""
    return [line.value() for line in SourceFile.of(path).lines()]


def _answers(seed: int, directory: Path) -> dict[str, Any]:
    """Train the starter, and let it answer the users' questions and the held-out ones."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from rewardloop_local import corpus
    from rewardloop_local.starter import encoder_of, write_starter
    from rewardloop_trainer.policy.rollouts import Sampling, roll_out

    write_starter(directory, seed)
    base = directory / "policy-base"
    policy: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    encoder = encoder_of(PreTrainedTokenizerFast.from_pretrained(base))
    chance = random.Random(seed)
    pool = [q.text for q in corpus.questions(seed)]
    kinds = chance.choices(list(_SHARES), list(_SHARES.values()), k=ASKED)
    prompts = [chance.choice(pool) for _ in kinds]
    held_out = [q.text for q in corpus.questions(seed, held_out=True)]

    def answered(questions: Sequence[str], candidates: int, offset: int) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(questions), 256):
            asked: list[Prompt] = [(Turn("user", q),) for q in questions[start : start + 256]]
            groups = roll_out(policy, encoder, asked, Sampling(candidates, 64, seed + offset + start))
            found += [[each.text for each in group] for group in groups]
            print(f"  {len(found)} of {len(questions)} questions answered", file=sys.stderr, flush=True)
        return found

    texts: list[list[str]] = [[] for _ in prompts]
    for candidates, offset in ((2, 10_000), (4, 900_000)):
        places = [i for i, kind in enumerate(kinds) if (kind == "ranking") == (candidates == 4)]
        for place, said in zip(places, answered([prompts[i] for i in places], candidates, offset), strict=True):
            texts[place] = said
    asked = list(zip(kinds, prompts, texts, strict=True))
    return {"asked": asked, "held_out": list(zip(held_out, answered(held_out, 3, 5_000_000), strict=True))}


def _record(row: Mapping[str, Any], event_id: str) -> Record:
    prompt: Prompt = (Turn("user", row["prompt"]),)
    match row["kind"]:
        case "choice" | "edit":
            return Pair(prompt, row["chosen"], row["rejected"], 1.0, event_id)
        case "tie":
            return TiedPair(prompt, row["first"], row["second"], 1.0, event_id)
        case "ranking":
            return RankedList(prompt, tuple(row["ranked"]), comparisons_in(len(row["ranked"])), event_id)
    return Labelled(prompt, row["response"], row["label"], 1.0, event_id)


def _pair(prompt: str, chosen: str, rejected: str, event_id: str = "") -> Pair:
    return Pair((Turn("user", prompt),), chosen, rejected, 1.0, event_id)


def _judged(row: Mapping[str, Any]) -> Pair:
    chosen = row["chosen"]
    return _pair(row["prompt"], row["responses"][chosen], row["responses"][1 - chosen], row["id"])


def _topic(row: Mapping[str, Any]) -> str:
    return str(row["prompt"]).partition("\n")[0]


def _shuffled(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    found = list(pairs)
    random.Random(seed).shuffle(found)
    return found
