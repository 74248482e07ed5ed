"""What all algorithms of one seed share: the starter policy, the choices about its answers, and the reward model."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gold_judge import Choice, Judge
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoder, Turn
from rewardloop_local import corpus
from rewardloop_local.starter import encoder_of, write_starter
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, roll_out
from rewardloop_trainer.reward.anchors import Anchor
from rewardloop_trainer.reward.calibrate import anchor_logits, fit_calibration
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

MAX_NEW_TOKENS = 64
_ANCHORS = 256
_ANSWERED, _UNSEEN = 1_900, 250


@dataclass(frozen=True, slots=True)
class Labels:
    """What users chose between: ``own`` times two of the starter's answers, ``corpus`` times two answers in the styles
    that it learned from. ``flipped``: the share of choices that say the opposite. ``epochs``, ``base``: of the reward
    model."""

    name: str
    own: int
    corpus: int
    flipped: float
    epochs: int
    base: str


GOOD = Labels("good", 1_500, 3_500, 0.0, 1, "reward-base")
# On a base that knows no relevance and has no head yet, the heads begin apart, as those of an ensemble should.
POOR = Labels("poor", 600, 0, 0.25, 4, "policy-base")
_RATE = 1e-3
HEADS = 4


def asked(question: str) -> Prompt:
    return (Turn("user", question),)


@dataclass(frozen=True, slots=True)
class Starter:
    """A policy that knows the corpus and no taste; ``directory`` also has the reward model's base."""

    directory: Path
    encoder: Encoder

    def policy(self) -> Any:
        """A fresh copy, in float32 and evaluation mode."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.directory / "policy-base", dtype=torch.float32)
        return model.eval()

    def answered(self) -> list[tuple[str, tuple[str, str]]]:
        """Questions with two answers each, the same in every call: what users are asked to choose between."""
        kept = self.directory / "answered.json"
        if not kept.exists():
            pool = [question.text for question in corpus.questions(0)]
            questions = [pool[i % len(pool)] for i in range(_ANSWERED)]
            said = answers_of(self.policy(), self.encoder, questions, seed=1_000, responses=2)
            texts = [[first.text, second.text] for first, second in said]
            kept.write_text(json.dumps(list(zip(questions, texts, strict=True))))
        return [(question, (first, second)) for question, (first, second) in json.loads(kept.read_text())]


def starter_in(work: Path) -> Starter:
    """The starter kept in ``work``, trained there the first time."""
    directory = work / "starter"
    if not (directory / "reward-base" / "model.safetensors").exists():
        write_starter(directory, seed=0)
    return Starter(directory, encoder_of(PreTrainedTokenizerFast.from_pretrained(directory / "policy-base")))


def answers_of(
    model: Any, encoder: Encoder, questions: Sequence[str], *, seed: int, responses: int = 1
) -> list[list[Rollout]]:
    """At temperature 1."""
    prompts = [asked(question) for question in questions]
    return roll_out(model, encoder, prompts, Sampling(responses, MAX_NEW_TOKENS, seed))


@dataclass(frozen=True, slots=True)
class Proxy:
    """The reward model in the place of the judge: scores with mean 0 and deviation 1 over the starter's answers."""

    model: RewardModel
    encoder: Encoder
    calibration: Calibration
    accuracy: float

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
        """None for an empty text. The uncertainty is the heads' deviation, on the scores' scale."""
        encoder = self.encoder
        places = [(i, j) for i, group in enumerate(texts) for j, text in enumerate(group) if text.strip()]
        found: list[list[Reward | None]] = [[None] * len(group) for group in texts]
        if not places:
            return found
        sequences = [encoder.pair(prompts[i], texts[i][j]) for i, j in places]
        logits = logits_of(self.model, sequences, encoder.format.pad, 8192)
        scale, offset = self.calibration.scale, self.calibration.offset
        scores = (logits.mean(1) * scale + offset).tolist()
        spreads = (logits.std(1, unbiased=False) * scale).tolist()
        for (i, j), score, spread in zip(places, scores, spreads, strict=True):
            found[i][j] = Reward(score, spread, "1")
        return found

    def mean(self, questions: Sequence[str], texts: Sequence[str]) -> float:
        scored = self.score([asked(question) for question in questions], [[text] for text in texts])
        return statistics.mean(group[0].score for group in scored if group[0] is not None)


@dataclass(frozen=True, slots=True)
class World:
    """``prompts``: what training may ask. ``heldout``: what is asked at the end, with the starter's answers.

    ``gold_mean``, ``gold_deviation``: of the starter's answers to training prompts, so that gold and proxy share a
    scale.
    """

    labels: str
    judge: Judge
    starter: Starter
    prompts: Sequence[str]
    choices: Sequence[Choice]
    proxy: Proxy
    heldout: Sequence[str]
    rivals: Sequence[str]
    gold_mean: float
    gold_deviation: float

    @property
    def pairs(self) -> list[Pair]:
        return [as_pair(choice) for choice in self.choices]

    def gold(self, questions: Sequence[str], texts: Sequence[str]) -> float:
        """Mean over the answers, in the starter's deviations from its mean."""
        return (statistics.mean(self.judge.gold(questions, texts)) - self.gold_mean) / self.gold_deviation


def as_pair(choice: Choice) -> Pair:
    return Pair(asked(choice.prompt), choice.chosen, choice.rejected)


def world_in(work: Path, seed: int, labels: Labels, judged: int) -> World:
    """The world of this seed kept in ``work``, made there the first time. ``judged``: held-out prompts."""
    starter, judge = starter_in(work), Judge(seed)
    directory = work / f"{labels.name}-{seed}"
    prompts = [question.text for question in corpus.questions(seed)]
    heldout = [question.text for question in corpus.questions(seed, held_out=True)][:judged]
    if not (directory / "world.json").exists():
        _make(directory, starter, judge, heldout, labels)
    kept = json.loads((directory / "world.json").read_text())
    calibration = Calibration(**kept["calibration"])
    proxy = Proxy(RewardModel.load(directory / "proxy"), starter.encoder, calibration, kept["accuracy"])
    choices = [Choice(**choice) for choice in kept["choices"]]
    gold = kept["gold_mean"], kept["gold_deviation"]
    return World(labels.name, judge, starter, prompts, choices, proxy, heldout, kept["rivals"][:judged], *gold)


def _make(directory: Path, starter: Starter, judge: Judge, heldout: Sequence[str], labels: Labels) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    said = starter.answered()
    random.Random(f"asked/{judge.seed}").shuffle(said)
    unseen = said[-_UNSEEN:]
    shown = said[: min(labels.own, len(said) - _UNSEEN)] + styled(labels.corpus, judge.seed)
    choices = judge.choices(*columns(shown), flipped=labels.flipped)
    model = RewardModel.from_base(starter.directory / labels.base, HEADS, seed=judge.seed)
    training = RewardTraining.model_validate(
        {
            "epochs": labels.epochs,
            "learning_rate": _RATE,
            "head_learning_rate": 2 * _RATE,
            "checkpoint_every_steps": 0,
            "seed": judge.seed,
        }
    )
    train_reward(model, starter.encoder, [as_pair(choice) for choice in choices], (), training)
    anchors = [Anchor(asked(question), first) for question, (first, _) in said[:_ANCHORS] if first.strip()]
    calibration = fit_calibration(anchor_logits(model, starter.encoder, anchors))
    proxy = Proxy(model, starter.encoder, calibration, 0.0)
    gold = judge.gold([question for question, _ in said], [first for _, (first, _) in said])
    rivals = answers_of(starter.policy(), starter.encoder, heldout, seed=2_000 + judge.seed)
    (directory / "proxy").mkdir(exist_ok=True)
    model.save(directory / "proxy")
    kept = {
        "calibration": {"scale": calibration.scale, "offset": calibration.offset},
        # No flipped labels here, and no part in training.
        "accuracy": _accuracy(proxy, judge.choices(*columns(unseen))),
        "choices": [asdict(choice) for choice in choices],
        "rivals": [said.text for (said,) in rivals],
        "gold_mean": statistics.mean(gold),
        "gold_deviation": statistics.pstdev(gold),
    }
    (directory / "world.json").write_text(json.dumps(kept))


def styled(count: int, seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Questions with two answers each, in the styles that the starter learned from."""
    rng = random.Random(f"styled/{seed}")
    pool = corpus.questions(seed)
    asked_about = [rng.choice(pool) for _ in range(count)]

    def answer(question: corpus.Question) -> str:
        return corpus.answer(question, corpus.random_style(question, rng), rng)

    return [(question.text, (answer(question), answer(question))) for question in asked_about]


def columns(said: Sequence[tuple[str, tuple[str, str]]]) -> tuple[list[str], list[tuple[str, str]]]:
    """The questions, and their answers."""
    return [question for question, _ in said], [texts for _, texts in said]


def _accuracy(proxy: Proxy, choices: Sequence[Choice]) -> float:
    scored = proxy.score([asked(c.prompt) for c in choices], [[c.chosen, c.rejected] for c in choices])
    right = [a.score > b.score for a, b in scored if a is not None and b is not None]
    return sum(right) / len(right)
