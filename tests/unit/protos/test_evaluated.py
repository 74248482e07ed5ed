"""What an evaluation found of a version lies beside it, and is never taken for another version's."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.evaluated import MOST_BYTES, Evaluated, EvaluatedError, EvaluatedVersions

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


class Counted(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Counts the files that are read."""

    cachable = False
    reads = 0

    def cat_file(self, *arguments: Any, **named: Any) -> Any:
        self.reads += 1
        return super().cat_file(*arguments, **named)


def aged(directory: Path, seconds: float = 60.0) -> None:
    """Let the files of a model be some time old. The time of a change of these times stays that of now."""
    for path in (directory / "reward" / ".evaluated").iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is some minutes after the writes."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 300)


def test_a_list_reads_each_file_once_and_looks_for_those_that_are_not_there_in_one_listing(
    tmp_path: Path, later: None
) -> None:
    files = Counted()
    kept = EvaluatedVersions(files, str(tmp_path))
    digests = {str(number): "d" * 64 for number in range(1, 6)}
    for number in ("2", "4"):
        kept.keep("reward", number, FOUND)
    for _ in range(3):
        assert kept.read_each("reward", digests) == ({"2": FOUND, "4": FOUND}, {})
    assert files.reads == 2
    assert kept.read_each("policy", digests) == ({}, {})


@pytest.mark.parametrize("is_later", [False, True])
def test_a_new_evaluation_is_seen_however_alike_the_file_looks(
    tmp_path: Path, is_later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of one length, written within the clock's step: files that were written just now are not trusted."""
    kept = ModelStore(tmp_path).evaluated
    now = time.time
    for i in range(30):
        found = replace(FOUND, figures={"accuracy": 0.1 + i % 9 / 10})
        kept.keep("reward", "1", found)
        if is_later:
            monkeypatch.setattr(time, "time", lambda i=i: now() + 10 * i)
        assert kept.read_each("reward", {"1": "d" * 64}) == ({"1": found}, {})


def test_a_file_in_the_place_of_another_is_seen_though_its_times_are_as_old(tmp_path: Path, later: None) -> None:
    kept = ModelStore(tmp_path).evaluated
    kept.keep("reward", "1", FOUND)
    aged(tmp_path)
    assert kept.read_each("reward", {"1": "d" * 64})[0] == {"1": FOUND}
    other = replace(FOUND, figures={"accuracy": 0.8})
    place = tmp_path / "reward" / ".evaluated" / "1.json"
    place.with_suffix(".new").write_text(json.dumps(asdict(other), sort_keys=True))
    os.utime(place.with_suffix(".new"), ns=(place.stat().st_atime_ns, place.stat().st_mtime_ns))
    place.with_suffix(".new").rename(place)
    assert kept.read_each("reward", {"1": "d" * 64})[0] == {"1": other}
    place.unlink()
    assert kept.read_each("reward", {"1": "d" * 64})[0] == {}


def test_a_cached_finding_is_not_taken_for_another_digest(tmp_path: Path, later: None) -> None:
    kept = ModelStore(tmp_path).evaluated
    kept.keep("reward", "1", FOUND)
    for digest in ("d", "e", "d"):
        assert kept.read_each("reward", {"1": digest * 64})[0] == ({"1": FOUND} if digest == "d" else {})


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    kept = ModelStore(tmp_path).evaluated
    kept.keep("reward", "2", FOUND)
    (tmp_path / "reward" / ".evaluated" / "1.json").mkdir()
    found, failed = kept.read_each("reward", {"1": "d" * 64, "2": "d" * 64})
    assert found == {"2": FOUND}
    assert list(failed) == ["1"]


def test_a_store_that_tells_nothing_of_its_files_is_read_at_each_call(later: None) -> None:
    kept = ModelStore("memory://test-evaluated").evaluated
    for accuracy in (0.6, 0.7):
        found = replace(FOUND, figures={"accuracy": accuracy})
        kept.keep("reward", "1", found)
        assert kept.read_each("reward", {"1": "d" * 64})[0] == {"1": found}


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
