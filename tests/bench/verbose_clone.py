"""The win rate at like lengths of a policy's verbose clone, by a reward model that learned to like length.

    python tests/bench/verbose_clone.py --shared ../shared/data --seeds 0 1 2

The judge is MiniLM with the trainer's linear start, learned from AlpacaEval's biased pairs, of which the longer answer
won 0.84. The policy gives beginnings of GPT-4 Turbo's answers to prompts that the judge has not seen. Its clones say
the same and are longer: "more" goes on longer in the same answers, "filler" adds sentences that say nothing to answers
of the same kind. A clone is no better at like lengths, so that 0.5 is right. MiniLM reads each text once for all runs
in a work directory.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arguments as options
import numpy as np
import torch
from curve_data import World, read_rows
from learning_curve import Model, new_model
from remembering import remembered

from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.judges import score_judge
from rewardloop_trainer.assessment.policies.head_to_head import Answers, head_to_head
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.evaluation.answers import Scores
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

_MOST_TOKENS = 160
_MOST_CHARACTERS = 500
_LEAST_SENTENCES = 5
_SENTENCE = re.compile(r"(?<=[.!?:\n])\s+")
_FILLER = (
    "In other words, this is what matters here.",
    "To put it differently, the point above stands.",
    "Let me say it once more for clarity.",
    "As explained above, this answers the question.",
    "I hope that this helps, and that it is clear.",
)


def learned_judge(pairs: Sequence[Pair], work: Path) -> Model:
    made = new_model(World((), {}), work, _MOST_TOKENS, 0, learns=False)
    settings = RewardTraining.model_validate({"epochs": 0, "checkpoint_every_steps": 0})
    train_reward(made.model, made.encoder, pairs, [], settings)
    return made


def judge_of(made: Model) -> Judge:
    model = made.model.eval()

    @torch.inference_mode()
    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> Scores:
        sequences = [made.encoder.pair(p, text) for p, group in zip(prompts, texts, strict=True) for text in group]
        logits = iter(logits_of(model, sequences, made.encoder.format.pad, 8192).double().mean(1).tolist())
        return [[next(logits) for _ in group] for group in texts]

    return score_judge("MiniLM", score)


def sources(shared: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The biased pairs, and the reference's answer to each prompt that has a long enough one."""
    biased = read_rows(shared / "alpacaeval_biased.jsonl.gz")
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in [
        *biased,
        *read_rows(shared / "alpacaeval_train.jsonl.gz"),
        *read_rows(shared / "alpacaeval_test.jsonl.gz"),
    ]:
        texts[row["prompt"]].update((row["chosen"], row["rejected"]))
    reference = {prompt: counts.most_common(1)[0][0] for prompt, counts in texts.items()}
    whole = {prompt: text[:_MOST_CHARACTERS] for prompt, text in reference.items()}
    return biased, {p: t for p, t in whole.items() if len(_SENTENCE.split(t)) >= _LEAST_SENTENCES}


def begun(text: str, share: float) -> str:
    """The first sentences of a text, at least one."""
    ends = [match.start() for match in _SENTENCE.finditer(text)] + [len(text)]
    return text[: ends[max(0, min(len(ends), round(share * len(ends))) - 1)]]


def policies(texts: Sequence[str], answers: int, seed: int) -> dict[str, list[list[str]]]:
    """The answers of the policy and of its clones to each prompt."""
    chance = random.Random(seed)

    def said(least: float, most: float, fillers: int = 0) -> list[list[str]]:
        return [
            [
                " ".join(
                    [begun(t, chance.uniform(least, most)), *chance.choices(_FILLER, k=chance.randint(0, fillers))]
                )
                for _ in range(answers)
            ]
            for t in texts
        ]

    return {"policy": said(0.2, 0.7), "more": said(0.35, 1.0), "filler": said(0.2, 0.7, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="directory of people's data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the answers and the prompts")
    parser.add_argument("--pairs", type=int, default=250, help="that the judge learns from")
    parser.add_argument("--prompts", type=int, default=50, help="that the policies answer")
    parser.add_argument("--answers", type=int, default=4, help="of each policy to each prompt")
    parser.add_argument("--work", type=Path, default=None, help="where MiniLM is kept")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    biased, reference = sources(asked.shared)
    prompts = sorted(reference)
    random.Random(0).shuffle(prompts)
    for_judging = set(prompts[: asked.prompts * 2])
    rows = [
        row
        for row in biased
        if row["prompt"] not in for_judging and max(len(row["chosen"]), len(row["rejected"])) <= 2 * _MOST_CHARACTERS
    ]
    random.Random(0).shuffle(rows)
    pairs = [
        Pair((Turn("user", row["prompt"]),), row["chosen"], row["rejected"], 1.0, f"{i}")
        for i, row in enumerate(rows[: asked.pairs])
    ]
    with options.work_directory(asked.work) as work, remembered(work / "read.pt"):
        begun_at = time.process_time()
        judge = judge_of(learned_judge(pairs, work))
        print(f"judge: {len(pairs)} pairs, {time.process_time() - begun_at:.0f} s of CPU", flush=True)
        print("| clone | seed | length | win rate [95%] | at like lengths [95%] | length's effect |")
        print("| --- | --- | --- | --- | --- | --- |")
        for seed in asked.seeds:
            chosen = random.Random(seed).sample(sorted(for_judging), asked.prompts)
            asked_prompts: list[Prompt] = [(Turn("user", p),) for p in chosen]
            said = policies([reference[p] for p in chosen], asked.answers, seed)
            sides = {n: Answers(n, t, [[len(x) for x in group] for group in t]) for n, t in said.items()}
            for clone in ("more", "filler"):
                found = head_to_head(asked_prompts, sides[clone], sides["policy"], judge)
                rate, like = found.win_rate, found.controlled
                longer = np.mean(sides[clone].lengths) / np.mean(sides["policy"].lengths)
                raw = f"{rate.mean:.3f} [{rate.lower(0.025):.3f}, {rate.upper(0.025):.3f}]"
                print(
                    f"| {clone} | {seed} | {longer:.2f} | {raw} | "
                    f"{like.win_rate:.3f} [{like.lower:.3f}, {like.upper:.3f}] | {like.length_effect:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
