"""The commands that train by hand weigh people as a round does: who says the opposite of everybody is not heard."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.crowd_worlds import Crowd, World
from support.tiny_encoder import save_tiny_encoder

from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.commands.people import people_in_memory
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.commands.reward_run import RewardTrainRun
from rewardloop_trainer.commands.reward_train_settings import RewardTrainSettings
from rewardloop_trainer.data.files.policy_rows import read_policy_data
from rewardloop_trainer.data.files.reward_rows import read_reward_data
from rewardloop_trainer.data.preferences import Pair

STAGES = Stages("rewardloop reward-train")


def rows(path: Path, votes: int, *, pairs: int, liars: float) -> Path:
    """A file in which the last people of a crowd say the opposite of what they think."""
    world = World(0, pairs, tested=1)
    written = [
        {
            "prompt": event.prompt.text,
            "responses": list(event.responses),
            "annotations": [{"annotator": event.annotator_id, "choice": event.choice.chosen}],
        }
        for event in world.judged(Crowd(people=20, votes=votes, liars=liars))
    ]
    random.Random(0).shuffle(written)
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


def weights_of(records: object) -> tuple[float, float]:
    """The mean weight of honest people's signals, and that of liars'."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for record in records:  # type: ignore[attr-defined]
        assert isinstance(record, Pair)
        found[int(record.annotator[1:]) < 16].append(record.weight)
    honest, lying = (sum(each) / len(each) for each in (found[True], found[False]))
    return honest, lying


@pytest.mark.parametrize(
    ("trust", "votes", "hears_liars"), [("votes", 3, False), ("off", 3, True), ("votes", 1, True), ("auto", 1, False)]
)
def test_a_reward_model_hears_liars_only_without_trust(
    tmp_path: Path, trust: str, votes: int, hears_liars: bool
) -> None:
    """With one vote on a pair people cannot be compared with each other, so that a model has to be asked."""
    save_tiny_encoder(tmp_path / "base", 0, words=[f"w{i}" for i in range(120)])
    data = rows(tmp_path / "data.jsonl", votes, pairs=1_200 // votes, liars=0.2)
    flags = {"base": str(tmp_path / "base"), "data": data, "out": tmp_path / "out", "trust": trust}
    settings = RewardTrainSettings.model_validate(flags)
    with people_in_memory() as people:
        run = RewardTrainRun(settings, read_reward_data(SourceFile.of(data), people.add), people, STAGES)
        honest, lying = weights_of(run._records.train)
    assert honest > 0.8
    assert (lying > 0.6) if hears_liars else (lying < 0.25)
    with people_in_memory() as nobody:  # the same command goes on with what it found
        again = RewardTrainRun(settings, read_reward_data(SourceFile.of(data)), nobody, STAGES)
        assert weights_of(again._records.train) == (honest, lying)


def test_a_policy_does_not_learn_from_liars(tmp_path: Path) -> None:
    data = rows(tmp_path / "data.jsonl", 3, pairs=300, liars=0.2)
    with people_in_memory() as people:
        read = read_policy_data(SourceFile.of(data), people.add)
        weighed = read.weighed(people.trust("auto"))
    honest, lying = weights_of(weighed.pairs)
    assert honest > 0.8 > 0.2 > lying
    assert [pair.chosen for pair in weighed.pairs] == [pair.chosen for pair in read.pairs]
    assert weighed.sha256 == read.sha256
