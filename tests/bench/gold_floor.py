"""Two reward models and a mixture with a floor: one taste rises, and the other does not fall below where it began.

    python tests/bench/gold_floor.py --seeds 3 --work DIR
    python tests/bench/gold_floor.py --report --work DIR

Users judge the same answers by two hidden tastes. One is that of the gold experiment: right, polite, short. The other
asks for reserve: it dislikes answers that flatter with a polite closing, which the first one likes. Each aspect has a
reward model of its own, which sees the choices of that aspect alone. The policy learns by GRPO from the model of the
first taste, and, from the same start, from a mixture that sets a floor under the second, half a deviation below the
mean of the start's own answers. Judges read what both say to held-out prompts, and nothing of it comes back.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gold_judge  # before the trainer: see there
import torch
from gold_world import HEADS, Proxy, Starter, answers_of, asked, columns, starter_in, styled

from rewardloop.formats.mixing.mixture_file import MixtureFile
from rewardloop.formats.mixing.total import PartValues, totals_of
from rewardloop.formats.store import Calibration
from rewardloop_local import corpus
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.reward.anchors import Anchor
from rewardloop_trainer.reward.calibrate import anchor_logits, fit_calibration
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

ASPECTS = ("helpful", "harmless")
ONLINE: dict[str, Any] = {
    "steps": 40,
    "prompts": 12,
    "responses": 4,
    "max_new_tokens": 64,
    "minibatch": 24,
    "learning_rate": 1e-3,
    "beta": 0.05,
    "checkpoint_every_steps": 0,
}
_ANCHORS = 128
_UNSEEN = 150
_RATE = 1e-3

Score = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], list[list[Reward | None]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the starter and the finished runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--own", type=int, default=1_500, help="choices of each aspect between two of the start's answers"
    )
    parser.add_argument("--styled", type=int, default=3_500, help="the same, between answers that it learned from")
    parser.add_argument("--judged", type=int, default=600, help="held-out prompts that the judges compare")
    parser.add_argument("--steps", type=int, default=ONLINE["steps"], help="online steps of each policy")
    # The start's answers have a mean of 0 by either model. A floor of 0 would punish a model's errors about them, too.
    parser.add_argument("--floor", type=float, default=-0.5, help="of harmless, in deviations of the start's answers")
    parser.add_argument("--penalty", type=float, default=3.0, help="what each deviation below the floor costs")
    parser.add_argument("--report", action="store_true", help="run nothing: the table of what is in --work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.report:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            run(options, seed)
    print(table(sorted((options.work / "floor").glob("*.json"))))


def run(options: argparse.Namespace, seed: int) -> None:
    """Learn from both mixtures with one seed, and keep what the judges say."""
    work: Path = options.work
    kept = work / "floor" / f"{seed}.json"
    if kept.exists():
        return
    started = time.process_time()
    starter, judges = starter_in(work), {name: gold_judge.Judge(seed, name) for name in ASPECTS}
    pool = [question.text for question in corpus.questions(seed)]
    heldout = [question.text for question in corpus.questions(seed, held_out=True)][: options.judged]
    begin = dict(_said(starter, starter.policy(), heldout, 2_000 + seed))
    own = _own(work, starter, options.own + _UNSEEN)
    taught = [*own[_UNSEEN:], *styled(options.styled, seed)]
    random.Random(seed).shuffle(taught)
    shown = [*taught, *own[:_UNSEEN]]  # the last ones tell how well a model orders what it has not seen
    proxies = {name: _proxy(starter, judges[name], shown) for name in ASPECTS}
    found: dict[str, Any] = {"seed": seed, "accuracy": {name: proxy.accuracy for name, proxy in proxies.items()}}
    floor = {"floor": options.floor, "penalty": options.penalty}
    mixtures: dict[str, dict[str, Any]] = {
        "free": {"helpful": {"weight": 1.0}},
        "floor": {"helpful": {"weight": 1.0}, "harmless": floor},
    }
    for name, parts in mixtures.items():
        policy, last = starter.policy(), dict[str, float]()

        def note(done: StepDone, last: dict[str, float] = last) -> None:
            last.update({key: done.figures[key] for key in ("kl", "score")})

        settings = OnlineSettings.model_validate({**ONLINE, "steps": options.steps})
        task = OnlineTask(algorithm_of("grpo", settings), settings, [asked(question) for question in pool], ())
        train_online(policy, starter.encoder, task, mixed(parts, proxies), RunControl(on_step=note), seed=seed)
        after = dict(_said(starter, policy, heldout, 3_000 + seed))
        found[name] = {"kl": last["kl"], **{a: _moved(judges[a], begin, after) for a in ASPECTS}}
        print(f"seed {seed}, {name}: {found[name]}", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found | {"cpu_seconds": time.process_time() - started}, indent=1))


def mixed(parts: Mapping[str, Any], proxies: Mapping[str, Proxy]) -> Score:
    """Return what scores by a mixture of the proxies, as the server makes its totals."""
    file = MixtureFile.model_validate({"version": "1", "mixtures": {"gold": {"parts": parts}}})
    mixture = file.mixtures["gold"]

    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
        by_part = {name: proxies[model].score(prompts, texts) for name, model in mixture.models.items()}
        rows = [[None] * len(group) for group in texts]
        whole: list[list[Reward | None]] = [list(row) for row in rows]
        for i, group in enumerate(texts):
            for j in range(len(group)):
                said = {name: part[i][j] for name, part in by_part.items()}
                if any(each is None for each in said.values()):
                    continue
                values = {n: PartValues([r.score], [r.uncertainty]) for n, r in said.items() if r is not None}
                (total,) = totals_of(mixture, values)
                whole[i][j] = Reward(total.score, total.uncertainty, "1")
        return whole

    return score


def table(kept: Sequence[Path]) -> str:
    """A line for each seed and reward: how far the judges' utility moved from the start, with 95% intervals."""
    lines = [
        "| reward | seed | helpful, gold [95%] | harmless, gold [95%] | KL, nats | CPU s of the seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("free", "floor"):
        for path in kept:
            found = json.loads(path.read_text())
            moved = found[name]
            gains = [f"{m['mean']:+.2f} [{m['low']:+.2f}, {m['high']:+.2f}]" for m in (moved[a] for a in ASPECTS)]
            shown = "helpful alone" if name == "free" else "floor on harmless"
            cells = (shown, found["seed"], *gains, f"{moved['kl']:.1f}", f"{found['cpu_seconds']:.0f}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _said(starter: Starter, policy: Any, questions: Sequence[str], seed: int) -> list[tuple[str, str]]:
    answers = answers_of(policy, starter.encoder, questions, seed=seed)
    return [(question, said.text) for question, (said,) in zip(questions, answers, strict=True)]


def _own(work: Path, starter: Starter, count: int) -> list[tuple[str, tuple[str, str]]]:
    """Return questions with two of the start's answers each, which are sampled once for all seeds."""
    kept = work / "own.json"
    if not kept.exists():
        pool = [question.text for question in corpus.questions(0)]
        asked_about = [pool[i % len(pool)] for i in range(count)]
        said = answers_of(starter.policy(), starter.encoder, asked_about, seed=1_000, responses=2)
        texts = [(first.text, second.text) for first, second in said]
        kept.write_text(json.dumps(list(zip(asked_about, texts, strict=True))))
    return [(question, (first, second)) for question, (first, second) in json.loads(kept.read_text())][:count]


def _proxy(starter: Starter, judge: gold_judge.Judge, shown: Sequence[tuple[str, tuple[str, str]]]) -> Proxy:
    """Train the reward model of one aspect on its choices but the last ones, and scale it to the start's answers."""
    learned = judge.choices(*columns(shown[:-_UNSEEN]))
    unseen = judge.choices(*columns(shown[-_UNSEEN:]))
    model = RewardModel.from_base(starter.directory / "reward-base", HEADS, seed=judge.seed)
    training = RewardTraining.model_validate(
        {
            "epochs": 1,
            "learning_rate": _RATE,
            "head_learning_rate": 2 * _RATE,
            "checkpoint_every_steps": 0,
            "seed": judge.seed,
        }
    )
    pairs = [Pair(asked(choice.prompt), choice.chosen, choice.rejected) for choice in learned]
    train_reward(model, starter.encoder, pairs, (), training)
    anchors = [Anchor(asked(question), text) for question, (text, _) in shown[-_UNSEEN:] if text.strip()][:_ANCHORS]
    calibration: Calibration = fit_calibration(anchor_logits(model, starter.encoder, anchors))
    proxy = Proxy(model, starter.encoder, calibration, 0.0)
    scored = proxy.score([asked(c.prompt) for c in unseen], [[c.chosen, c.rejected] for c in unseen])
    right = [a.score > b.score for a, b in scored if a is not None and b is not None]
    return Proxy(model, starter.encoder, calibration, sum(right) / len(right))


def _moved(judge: gold_judge.Judge, begin: Mapping[str, str], after: Mapping[str, str]) -> dict[str, float]:
    """Return the mean change of the judge's utility over the prompts, with its 95% bootstrap interval."""
    questions = list(begin)
    before = judge.gold(questions, [begin[question] for question in questions])
    now = judge.gold(questions, [after[question] for question in questions])
    gains = [b - a for a, b in zip(before, now, strict=True)]
    chance = random.Random(judge.seed)
    means = sorted(statistics.mean(chance.choices(gains, k=len(gains))) for _ in range(1_000))
    return {"mean": statistics.mean(gains), "low": means[25], "high": means[974]}


if __name__ == "__main__":
    main()
