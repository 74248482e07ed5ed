"""What an evaluation found of a version lies beside it, and is never taken for another version's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.evaluated import MOST_BYTES, Evaluated, EvaluatedError

FOUND = Evaluated("d" * 64, 1_700_000_000.5, "reward 1", {"accuracy": 0.7}, "20260101T000000.000Z-evaluation-00000000")
DAMAGED = f'{{"digest": "{FOUND.digest}", %s}}'


def test_the_last_evaluation_of_a_version_is_read_as_it_was_kept(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    made = store.publish(Manifest("reward"), lambda directory: None)
    assert store.evaluated.read("reward", made.version, made.digest) is None
    for accuracy in (0.6, 0.7):
        store.evaluated.keep("reward", made.version, Evaluated(made.digest, 1.0, "", {"accuracy": accuracy}))
    found = ModelStore(tmp_path).evaluated.read("reward", made.version, made.digest)
    assert found == Evaluated(made.digest, 1.0, "", {"accuracy": 0.7})
    assert store.versions("reward") == [1]
    assert store.manifest("reward", 1) == made


def test_that_of_another_version_of_the_number_is_not_taken(tmp_path: Path) -> None:
    evaluated = ModelStore(tmp_path).evaluated
    evaluated.keep("reward", "1", FOUND)
    assert evaluated.read("reward", "1", "d" * 64) == FOUND
    assert evaluated.read("reward", "1", "e" * 64) is None
    assert evaluated.read("reward", "2", "d" * 64) is None
    assert evaluated.read("policy", "1", "d" * 64) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"digest": 1}',
        '{"digest": "d", "time": 1, "figures": {"a": "b"}}',
        '{"x": 1}',
        '"\\ud800"',
        DAMAGED % '"time": 1e300',
        DAMAGED % '"time": -1',
        DAMAGED % f'"time": 1{"0" * 400}',
        DAMAGED % '"time": 1, "against": "\\ud800"',
        DAMAGED % '"time": 1, "figures": {"\\ud800": 1}',
        DAMAGED % f'"time": 1, "figures": {"[" * 100_000}',
        DAMAGED % f'"time": 1, "against": "{"a" * MOST_BYTES}"',
    ],
    ids=range(13),
)
def test_what_is_damaged_counts_as_nothing(tmp_path: Path, text: str) -> None:
    evaluated = ModelStore(tmp_path).evaluated
    evaluated.keep("reward", "1", FOUND)
    (tmp_path / "reward" / ".evaluated" / "1.json").write_text(text)
    assert evaluated.read("reward", "1", "d" * 64) is None


@pytest.mark.parametrize(
    "found",
    [
        Evaluated("d", 1.0, "", {"accuracy": math.nan}),
        Evaluated("d", 1.0, "\udcff", {"accuracy": 0.7}),
        Evaluated("d", 1.0, "a" * MOST_BYTES, {"accuracy": 0.7}),
    ],
    ids=["no number", "no text", "too long"],
)
def test_what_could_not_be_read_is_not_kept(tmp_path: Path, found: Evaluated) -> None:
    evaluated = ModelStore(tmp_path).evaluated
    with pytest.raises(EvaluatedError):
        evaluated.keep("reward", "1", found)
    assert evaluated.read("reward", "1", "d") is None
