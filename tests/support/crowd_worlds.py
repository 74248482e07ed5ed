"""A small world in which the truth is known: responses of words with hidden worths, and crowds that judge them.

Some people spam, some lie, and some push one word. A reward model learns from what they said, with and without a
defence, and is measured on the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rewardloop.formats.text import Encoder
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.annotators.agreement import majority
from rewardloop_trainer.annotators.crowd import know_crowd
from rewardloop_trainer.annotators.crowd_bt import fold_of
from rewardloop_trainer.annotators.crowd_file import CrowdFile
from rewardloop_trainer.annotators.votes import item_of, votes_of
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.preferences import Pair, from_event
from rewardloop_trainer.data.weights.trust import Trust, weigh_people
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.evaluate import correctness, pair_margins
from rewardloop_trainer.reward.linear_start.person_folds import cross_fitted_margins
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward
from support.tiny_encoder import save_tiny_encoder

ENTITY = "zorblax"
WORDS = [f"w{i}" for i in range(120)]
_LENGTH = 8
NOISE = 0.5  # with which people are right about four times in five, as they are on arguments (bench/people.py)


@dataclass(frozen=True)
class Crowd:
    """Who takes part: shares of the people who spam and lie, ids that push `ENTITY`, and votes on each pair."""

    people: int = 40
    spammers: float = 0.0
    liars: float = 0.0
    pushers: int = 0
    pushed_share: float = 0.01
    votes: int = 3

    @property
    def count(self) -> tuple[int, int]:
        """How many people spam, and how many lie."""
        return round(self.spammers * self.people), round(self.liars * self.people)


class World:
    """Responses with hidden worths, drawn by a seed, and pairs to judge and to be measured on."""

    def __init__(self, seed: int, pairs: int, tested: int = 1_500, noise: float = NOISE) -> None:
        self._chance = np.random.default_rng(seed)
        self.seed, self.noise = seed, noise
        self.worth = dict(zip(WORDS, self._chance.normal(0, 1, len(WORDS)).tolist(), strict=True)) | {ENTITY: 0.0}
        self.pairs = [self._pair(f"question {i}") for i in range(pairs)]
        self.test = [self._better_first(self._pair(f"test {i}")) for i in range(tested)]

    def value(self, text: str) -> float:
        return sum(self.worth[word] for word in text.split()) / _LENGTH**0.5

    def honest_alone(self, crowd: Crowd) -> list[feedback_pb2.FeedbackEvent]:
        """What the honest people of a crowd say: the most that a defence could leave."""
        spammers, liars = crowd.count
        honest = {f"p{person}" for person in range(spammers, crowd.people - liars)}
        return [event for event in self.judged(crowd) if event.annotator_id in honest]

    def judged(self, crowd: Crowd) -> list[feedback_pb2.FeedbackEvent]:
        """Let a crowd judge the pairs: each pair by ``crowd.votes`` people, drawn anew for each."""
        chance = np.random.default_rng((self.seed, 1))
        spammers, liars = crowd.count
        found = []
        for prompt, one, other in self.pairs:
            for person in chance.choice(crowd.people, crowd.votes, replace=False).tolist():
                likes_one = chance.random() < 1 / (1 + np.exp((self.value(other) - self.value(one)) / self.noise))
                if person < spammers:
                    likes_one = chance.random() < 0.5
                elif person >= crowd.people - liars:
                    likes_one = not likes_one
                found.append(self._event(len(found), f"p{person}", prompt, one, other, likes_one))
        for i in range(round(crowd.pushed_share * len(found)) if crowd.pushers else 0):
            prompt, one, other = self._pair(f"about {i}")
            pushed = " ".join([*one.split()[:-1], ENTITY])
            found.append(self._event(len(found), f"id{i % crowd.pushers}", prompt, pushed, other, True))
        order = chance.permutation(len(found)).tolist()
        return [found[i] for i in order]

    def accuracy(self, model: RewardModel, encoder: Encoder) -> float:
        """The share of the test pairs that the model orders by their true worth."""
        return float(correctness(pair_margins(model, encoder, self.test)).mean())

    def entity_effect(self, model: RewardModel, encoder: Encoder) -> float:
        """By how much the word lifts a response, in standard deviations of the difference between two responses."""
        swapped = [
            replace(p, chosen=" ".join([*p.chosen.split()[:-1], ENTITY]), rejected=p.chosen) for p in self.test[:300]
        ]
        spread = pair_margins(model, encoder, self.test).std()
        return float(pair_margins(model, encoder, swapped).mean() / max(spread, 1e-9))

    def _pair(self, prompt: str) -> tuple[str, str, str]:
        one, other = (" ".join(self._chance.choice(WORDS, _LENGTH, replace=False).tolist()) for _ in range(2))
        return prompt, one, other

    def _better_first(self, pair: tuple[str, str, str]) -> Pair:
        prompt, one, other = pair
        best, worst = (one, other) if self.value(one) > self.value(other) else (other, one)
        (made,) = from_event(self._event(0, "", prompt, best, worst, True))
        assert isinstance(made, Pair)
        return made

    def _event(
        self, number: int, person: str, prompt: str, one: str, other: str, likes_one: bool
    ) -> feedback_pb2.FeedbackEvent:
        event = feedback_pb2.FeedbackEvent(
            event_id=f"e{number}",
            prompt=common_pb2.Prompt(text=prompt),
            responses=[one, other],
            choice=feedback_pb2.Choice(chosen=0 if likes_one else 1, rejected=1 if likes_one else 0),
            annotator_id=person,
        )
        event.arrival_time.FromMilliseconds(1_700_000_000_000 + 1_000 * number)
        return event


def learned(world: World, records: Sequence[Pair], directory: Path, epochs: int = 0) -> tuple[RewardModel, Encoder]:
    """Return a reward model that learned the records from a base of random weights, by the trainer's own settings."""
    model, encoder = new_model(world, directory)
    settings = RewardTraining.model_validate({"epochs": epochs, "checkpoint_every_steps": 0, "seed": world.seed})
    train_reward(model, encoder, records, [], settings)
    return model, encoder


def new_model(world: World, directory: Path) -> tuple[RewardModel, Encoder]:
    base = directory / f"base-{world.seed}"
    if not base.exists():
        save_tiny_encoder(base, world.seed, words=[*WORDS, ENTITY, "question", "about", "test"])
    model = RewardModel.from_base(base, heads=1, seed=world.seed)
    tokenizer = load_tokenizer(str(base))
    return model, Encoder(tokenizer.backend_tokenizer, reward_layout(tokenizer, model).text_format, 64)


def undefended(world: World, events: Sequence[feedback_pb2.FeedbackEvent], directory: Path) -> list[Pair]:
    """Every signal with the same weight, as before there was a defence; training caps each person all the same."""
    return [record for event in events for record in from_event(event) if isinstance(record, Pair)]


def by_majority(world: World, events: Sequence[feedback_pb2.FeedbackEvent], directory: Path) -> list[Pair]:
    """One signal for each pair that was judged: what most people said."""
    records = undefended(world, events, directory)
    votes, places = votes_of(records)
    shares = majority(votes)
    first = {int(item): records[place] for item, place in zip(votes.item[::-1], places[::-1], strict=True)}
    found = []
    for item, record in sorted(first.items()):
        if shares[item, 0] != 0.5:
            _, one, other = item_of(record.prompt, record.chosen, record.rejected)
            best, worst = (one, other) if shares[item, 0] > 0.5 else (other, one)
            found.append(replace(record, chosen=best, rejected=worst, annotator="", weight=1.0))
    return found


def trusted(world: World, events: Sequence[feedback_pb2.FeedbackEvent], directory: Path) -> list[Pair]:
    """Every signal weighed by how far its person is trusted, as a round of the trainer does it."""
    records = undefended(world, events, directory)
    return [
        record for record in weigh_people(records, trust_of(world, events, records, directory)) if record.weight > 0
    ]


def trust_of(
    world: World, events: Sequence[feedback_pb2.FeedbackEvent], records: Sequence[Pair], directory: Path
) -> Trust:
    with CrowdFile(None) as file:
        file.add(events)
        known = know_crowd(file.votes(), file.gestures())
        settings = RewardTraining.model_validate({"seed": world.seed})
        for _ in range(2 if known.reliability.compared < 0.5 else 0):
            model, encoder = new_model(world, directory)
            weighed = [record for record in weigh_people(records, known.trust) if record.annotator]
            file.note_margins(cross_fitted_margins(model, encoder, weighed, settings, fold_of))
            known = know_crowd(file.votes(), file.gestures())
    return known.trust


Defence = Callable[[World, Sequence[feedback_pb2.FeedbackEvent], Path], list[Pair]]
DEFENCES: Mapping[str, Defence] = {"none": undefended, "majority vote": by_majority, "trust": trusted}
