"""Made-up candidates of known worth, and how often each gate lets them pass: the gates' operating characteristics.

Everything is drawn from a seed. The gates are called as the rounds call them; nothing of them is copied here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.data.preferences import Labelled, Pair
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, Statements
from rewardloop_trainer.evaluation.gate_anchor import GateAnchor, anchor_of_candidate, meet_best
from rewardloop_trainer.evaluation.live_comparison import Decision, LiveTest
from rewardloop_trainer.evaluation.policy_gate import is_liked_less, plan_of, share_won
from rewardloop_trainer.evaluation.reward_gate import RewardGateRules, judge_reward
from rewardloop_trainer.policy.settings import LiveTestSettings, PolicyGateLimits

Floats = npt.NDArray[np.float64]

# Differences between the two answers to a prompt, in nats: a model that knew them would be right 73% of the time.
_TASTE = 1.5
LIVE_ACCURACY = 0.65
# How much two answers of one policy to one prompt differ, and by how much prompts differ in which policy they suit.
_ANSWERS, _PROMPTS, _RESPONSES = 1.0, 0.7, 4
# How much the scores of the judge of policies and those of the reward version before correlate.
_ALIKE = 0.5
_PAIR = Pair((Turn("user", "?"),), "a", "b")
_GRADED = Labelled((Turn("user", "?"),), "a", 1.0)
NEW, OLD = "8", "7"


@cache
def noise_of(accuracy: float) -> float:
    """The deviation of a reward model's error, in nats, that gives this accuracy."""
    grid = np.linspace(-6, 6, 1001)
    density = np.exp(-(grid**2) / 2)
    utility, density = _TASTE * grid, density / density.sum()
    likes = 1 / (1 + np.exp(-utility))

    def accuracy_of(noise: float) -> float:
        says = np.array([NormalDist().cdf(u / noise) for u in utility])
        return float(density @ (says * likes + (1 - says) * (1 - likes)))

    low, high = 1e-2, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if accuracy_of(middle) > accuracy else (low, middle)
    return (low * high) ** 0.5


@dataclass(frozen=True, slots=True)
class Judged:
    """What people said about prompts, a fifth of which have two judgements: choices, or thumbs.

    Attributes:
        utility: By how much the first answer is better, or how good the answer is, in nats.
        evidence: What was said.
    """

    utility: Floats
    evidence: Evidence

    @classmethod
    def drawn(cls, prompts: int, rng: np.random.Generator, kind: str = "choices", first_prompt: int = 0) -> Judged:
        of = np.repeat(np.arange(prompts), rng.choice([1, 2], size=prompts, p=[0.8, 0.2]))
        utility = _TASTE * (0.5**0.5 * rng.normal(size=prompts)[of] + 0.5**0.5 * rng.normal(size=len(of)))
        likes = rng.random(len(of)) < 1 / (1 + np.exp(-utility))
        ones, clusters = np.ones(len(of)), (of + first_prompt).astype(np.int64)
        if kind == "thumbs":
            said = Statements(likes.astype(np.float64), ones, clusters)
            return cls(utility, evidence(nothing(), said, f"{first_prompt}/"))
        said = Statements(ones, ones, clusters)
        return cls(np.where(likes, utility, -utility), evidence(said, nothing(), f"{first_prompt}/"))

    def read(self, errors: Floats, accuracy: float) -> Readings:
        """What a model with these standard errors and this accuracy says."""
        says = self.utility + noise_of(accuracy) * errors
        return readings(says) if self.evidence.pairs else Readings(np.zeros(0), says)


def nothing() -> Statements:
    return Statements(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))


def evidence(comparisons: Statements, grades: Statements, name: str = "") -> Evidence:
    """Evidence of texts that do not matter, with keys that begin with ``name``."""
    pairs, graded = len(comparisons), len(grades)
    keys = tuple(f"{name}{i}" for i in range(pairs + graded))
    return Evidence((_PAIR,) * pairs, comparisons, (_GRADED,) * graded, grades, keys[:pairs], keys[pairs:])


def readings(margins: Floats) -> Readings:
    return Readings(margins, np.zeros(0))


def like(errors: Floats, alike: float, rng: np.random.Generator) -> Floats:
    """Standard errors that correlate with these by ``alike``."""
    return alike * errors + (1 - alike**2) ** 0.5 * rng.normal(size=errors.shape)


def reward_pass_rate(
    prompts: int,
    difference: float,
    runs: int,
    *,
    kind: str = "choices",
    alike: float = 0.9,
    rules: RewardGateRules | None = None,
) -> float:
    """How often the reward gate passes a candidate whose accuracy is ``difference`` above the live version's.

    Args:
        prompts: Held-out prompts.
        difference: Of the accuracies, from -1 to 1.
        runs: How many candidates are drawn.
        kind: What people said, "choices" or "thumbs".
        alike: The correlation of both models' errors; 0.9 is a candidate that was trained from the live version.
        rules: The gate's rules; the defaults if None.
    """
    rng = np.random.default_rng((7, prompts, round(1000 * (difference + 1)), runs))
    passed = 0
    for _ in range(runs):
        judged = Judged.drawn(prompts, rng, kind)
        errors = rng.normal(size=len(judged.utility))
        live = judged.read(errors, LIVE_ACCURACY)
        candidate = judged.read(like(errors, alike, rng), LIVE_ACCURACY + difference)
        passed += judge_reward(judged.evidence, candidate, live, 0.0, rules).passed
    return passed / runs


def first_pass_rate(thumbs: int, rarer: int, auc: float, runs: int) -> float:
    """How often the reward gate passes a first version by thumbs alone, one a prompt.

    Args:
        thumbs: Held-out thumbs.
        rarer: How many of them are down.
        auc: The probability that the model scores a liked answer above a disliked one; both kinds' scores are normal.
        runs: How many models are drawn.
    """
    rng = np.random.default_rng((31, thumbs, rarer, round(1000 * auc), runs))
    likes = np.arange(thumbs) >= rarer
    said = evidence(nothing(), Statements(likes.astype(np.float64), np.ones(thumbs), np.arange(thumbs)))
    apart = 2**0.5 * NormalDist().inv_cdf(auc)
    logits = rng.normal(size=(runs, thumbs)) + apart * likes
    return sum(judge_reward(said, Readings(np.zeros(0), each), None, 0.0).passed for each in logits) / runs


@dataclass(frozen=True, slots=True)
class Ratchet:
    """How a line of versions ended: how many candidates were promoted, and the gain of true accuracy."""

    promoted: int
    gained: float


def ratchet(
    seed: int, *, rounds: int = 30, each: float = -0.008, prompts: int = 400, rules: RewardGateRules | None = None
) -> Ratchet:
    """Offer candidates that are each truly worse than the live version, and see where the line ends.

    A third of the held-out prompts is replaced in each round; the anchor set stays.

    Args:
        seed: Of everything drawn.
        rounds: How many candidates there are.
        each: By how much the accuracy of each exceeds that of the version that is live then.
        prompts: How many are held out at a time.
        rules: The gate's rules; the defaults if None.
    """
    rng = np.random.default_rng((11, seed))
    parts = [Judged.drawn(prompts // 3, rng, first_prompt=1_000_000 * i) for i in range(3)]
    errors = [rng.normal(size=len(part.utility)) for part in parts]
    accuracy, promoted, anchor = LIVE_ACCURACY, 0, GateAnchor("1", {})
    for number in range(rounds):
        fresh = Judged.drawn(prompts // 3, rng, first_prompt=1_000_000 * (number + 3))
        parts, errors = [*parts[:2], fresh], [*errors[:2], rng.normal(size=len(fresh.utility))]
        said = _joined([part.evidence for part in parts])
        live = _read(parts, errors, accuracy)
        moved = [like(each_error, 0.9, rng) for each_error in errors]
        candidate = _read(parts, moved, accuracy + each)
        met = meet_best(anchor, "1", said, candidate, live, lambda *_: None)
        if judge_reward(said, candidate, live, 0.0, rules, met[0]).passed:
            promoted, accuracy, errors = promoted + 1, accuracy + each, moved
            kept = anchor_of_candidate(said, candidate, met)
            anchor = GateAnchor(kept.best or "1", kept.readings)
        else:
            anchor = met[1]
    return Ratchet(promoted, accuracy - LIVE_ACCURACY)


def _read(parts: Sequence[Judged], errors: Sequence[Floats], accuracy: float) -> Readings:
    each = [part.read(error, accuracy).margins for part, error in zip(parts, errors, strict=True)]
    return readings(np.concatenate(each))


def _joined(parts: Sequence[Evidence]) -> Evidence:
    said = Statements(
        np.concatenate([part.comparisons.targets for part in parts]),
        np.concatenate([part.comparisons.weights for part in parts]),
        np.unique(np.concatenate([part.comparisons.clusters for part in parts]), return_inverse=True)[1],
    )
    keys = tuple(key for part in parts for key in part.pair_keys)
    return Evidence(tuple(p for part in parts for p in part.pairs), said, (), nothing(), keys, ())


def shares_won(prompts: int, win_rate: float, rng: np.random.Generator) -> Floats:
    """The share of four by four answers that a candidate with this win rate wins, for each prompt."""
    return _shares(win_rate, _likings(prompts, rng))


def shares_by_two(prompts: int, win_rate: float, other: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The shares that a candidate wins by a judge, and by another model, by which it has the win rate ``other``.

    Their scores correlate by 0.5, as those of two models that are right about two thirds of people's choices may.
    """
    judge = _likings(prompts, rng)
    return _shares(win_rate, judge), _shares(other, [like(each, _ALIKE, rng) for each in judge])


def _likings(prompts: int, rng: np.random.Generator) -> list[Floats]:
    """What a model likes of each prompt, of the candidate's answers and of the live policy's: standard deviates."""
    shapes = ((prompts, 1, 1), (prompts, _RESPONSES, 1), (prompts, 1, _RESPONSES))
    return [rng.normal(size=shape) for shape in shapes]


def _shares(win_rate: float, likings: Sequence[Floats]) -> Floats:
    prompt, ours, theirs = likings
    level = NormalDist().inv_cdf(win_rate) * (2 * _ANSWERS**2 + _PROMPTS**2) ** 0.5
    shares: Floats = (level + _PROMPTS * prompt + _ANSWERS * ours > _ANSWERS * theirs).mean(axis=(1, 2))
    return shares


def policy_passes(shares: Floats, limits: PolicyGateLimits) -> tuple[bool, int]:
    """Whether the policy gate calls the candidate better, and after how many prompts it knows."""
    plan = plan_of(limits, len(shares))
    for end in plan.ends:
        look = plan.look(shares[:end])
        if look.decision != "open":
            break
    return look.lower > plan.threshold, end


def policy_pass_rate(prompts: int, difference: float, runs: int) -> tuple[float, float]:
    """How often the policy gate passes a candidate that wins 1/2 + ``difference``, and after how many prompts."""
    rng = np.random.default_rng((13, prompts, round(1000 * (difference + 1)), runs))
    limits = PolicyGateLimits.model_validate({})
    found = [policy_passes(shares_won(prompts, 0.5 + difference, rng), limits) for _ in range(runs)]
    return sum(passed for passed, _ in found) / runs, sum(asked for _, asked in found) / runs


def not_refused(shares: Floats) -> bool:
    """Whether the reward version before lets a candidate pass, by the shares (prompts,) that it wins."""
    return not is_liked_less(share_won(shares).upper(0.025))


def earlier_pass_rate(prompts: int, difference: float, runs: int) -> float:
    """How often the version before, alone, lets a candidate pass that wins 1/2 + ``difference`` by its scores."""
    rng = np.random.default_rng((23, prompts, round(1000 * (difference + 1)), runs))
    return float(np.mean([not_refused(shares_won(prompts, 0.5 + difference, rng)) for _ in range(runs)]))


def both_pass_rate(prompts: int, difference: float, other: float, runs: int) -> float:
    """How often the judge and the version before together pass a candidate that wins 1/2 + ``difference`` by the judge.

    By the version before it wins 1/2 + ``other``. That version scores the answers that the judge needed to decide.
    """
    rng = np.random.default_rng((29, prompts, round(1000 * (difference + 1)), round(1000 * (other + 1)), runs))
    limits = PolicyGateLimits.model_validate({})
    passed = 0
    for _ in range(runs):
        judged, earlier = shares_by_two(prompts, 0.5 + difference, 0.5 + other, rng)
        is_better, asked = policy_passes(judged, limits)
        passed += is_better and not_refused(earlier[:asked])
    return passed / runs


def chosen(win: bool, person: str) -> feedback_pb2.FeedbackEvent:
    """A person's choice between both versions."""
    event = feedback_pb2.FeedbackEvent(
        responses=["new", "old"],
        policy_version=common_pb2.ModelVersion(version=OLD),
        response_versions=[NEW, OLD],
        annotator_id=person,
    )
    event.choice.chosen, event.choice.rejected = (0, 1) if win else (1, 0)
    return event


def live_decision(
    tastes: Mapping[str, float], choices: Mapping[str, int], rng: np.random.Generator, alpha: float = 0.05
) -> Decision:
    """What a live test decides if these people choose so often, in any order.

    Args:
        tastes: With what probability each person prefers the candidate's answer.
        choices: How many choices each of them makes.
        rng: Draws the order and the choices.
        alpha: The level of the test.
    """
    test = LiveTest(NEW, OLD, LiveTestSettings.model_validate({"alpha": alpha, "max_preferences": 100_000}))
    who = [person for person, count in choices.items() for _ in range(count)]
    for i in rng.permutation(len(who)):
        if test.add(chosen(bool(rng.random() < tastes[who[i]]), who[i])) != "running":
            break
    return test.decision


def live_promotion_rate(people: int, difference: float, runs: int) -> float:
    """How often so many people, of varied tastes and unequal diligence, promote a candidate that they like so."""
    rng = np.random.default_rng((17, people, round(1000 * (difference + 1)), runs))
    promoted = 0
    for _ in range(runs):
        names = [f"p{i}" for i in range(people)]
        tastes = rng.beta(4 * (0.5 + difference), 4 * (0.5 - difference), size=people)
        counts = np.minimum(1 + rng.geometric(0.4, size=people), 50)
        decision = live_decision(
            dict(zip(names, tastes.tolist(), strict=True)), dict(zip(names, counts.tolist(), strict=True)), rng
        )
        promoted += decision == "promote"
    return promoted / runs


def two_tastes_decided(runs: int, heavy: int = 4) -> float:
    """How often forty people of two opposite tastes, ``heavy`` of whom choose fifty times, decide a live test.

    Those who choose often are of one taste.
    """
    rng = np.random.default_rng((19, runs, heavy))
    decided = 0
    for _ in range(runs):
        tastes = {f"p{i}": 0.9 if i < 20 else 0.1 for i in range(40)}
        counts = {f"p{i}": 50 if i < heavy else int(rng.integers(1, 5)) for i in range(40)}
        decided += live_decision(tastes, counts, rng) in ("promote", "roll_back")
    return decided / runs


# Points of accuracy, or of the win rate, by which a candidate differs.
DIFFERENCES = (-5, -2, -1, 0, 1, 2, 5)


def _of_reward(prompts: int, kind: str, alike: float) -> Callable[[float, int], float]:
    return lambda difference, runs: reward_pass_rate(prompts, difference, runs, kind=kind, alike=alike)


def _of_policy(prompts: int) -> Callable[[float, int], float]:
    return lambda difference, runs: policy_pass_rate(prompts, difference, runs)[0]


def _of_both(prompts: int) -> Callable[[float, int], float]:
    """Both see the same difference."""
    return lambda difference, runs: both_pass_rate(prompts, difference, difference, runs)


def _of_earlier(prompts: int) -> Callable[[float, int], float]:
    return lambda difference, runs: earlier_pass_rate(prompts, difference, runs)


def _of_contradiction(prompts: int) -> Callable[[float, int], float]:
    """The judge sees five points more."""
    return lambda difference, runs: both_pass_rate(prompts, 0.05, difference, runs)


def _of_people(people: int) -> Callable[[float, int], float]:
    return lambda difference, runs: live_promotion_rate(people, difference, runs)


# By its name in the table of docs/explanation/gates.md: how often each gate passes a candidate of a given difference.
GATES: Mapping[str, Callable[[float, int], float]] = {
    **{f"reward, choices about {n} prompts": _of_reward(n, "choices", 0.9) for n in (60, 300, 1000)},
    **{f"reward from its base, choices about {n} prompts": _of_reward(n, "choices", 0.5) for n in (60, 300, 1000)},
    **{f"reward, thumbs about {n} prompts": _of_reward(n, "thumbs", 0.9) for n in (60, 300, 1000)},
    **{f"policy, {n} prompts": _of_policy(n) for n in (60, 200, 400)},
    **{f"policy, with the version before, {n} prompts": _of_both(n) for n in (60, 200, 400)},
    **{f"live test, {n} people": _of_people(n) for n in (30, 100, 400)},
}
# As above, by what the reward version before sees of a candidate. It can refuse and not promote, so it passes most.
VETOES: Mapping[str, Callable[[float, int], float]] = {
    **{f"the version before alone, {n} prompts": _of_earlier(n) for n in (60, 200, 400)},
    **{f"a candidate that wins +5 by the judge, {n} prompts": _of_contradiction(n) for n in (60, 200, 400)},
}

# Thumbs of the rarer kind, and by its name in the table with this heading: how often the gate passes a first version.
RARER = (1, 2, 3, 5, 10)


def _of_first(thumbs: int, auc: float) -> Callable[[int, int], float]:
    return lambda rarer, runs: first_pass_rate(thumbs, rarer, auc, runs)


FIRST: Mapping[str, Callable[[int, int], float]] = {
    f"AUC {auc:g}, {n} thumbs": _of_first(n, auc) for n in (50, 200) for auc in (0.5, 0.75, 0.9)
}


def slack(rate: float, runs: int, deviations: float = 3.0) -> float:
    """How far an observed rate may be from this one by chance."""
    return deviations * math.sqrt(max(rate * (1 - rate), 1 / runs) / runs)
