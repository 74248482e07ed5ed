"""The walks through the code name files that exist, in order, and enter no folder twice."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.documents import ROOT, tracked

_PAGE = (ROOT / "docs" / "explanation" / "walks.md").read_text(encoding="utf-8")
WALKS = {walk.partition("\n")[0]: walk for walk in re.split(r"^## ", _PAGE, flags=re.MULTILINE)[1:]}


def folders(walk: str) -> Iterator[tuple[str, str]]:
    """Each folder of a walk with the text below it."""
    parts = re.split(r"^### `([^`]+)`$", walk, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def test_there_is_a_walk_for_a_prompt_a_signal_and_a_rollout() -> None:
    assert [name.split()[1].rstrip(",") for name in WALKS] == ["prompt", "signal", "rollout"]


@pytest.mark.parametrize("walk", WALKS)
def test_no_folder_is_entered_twice(walk: str) -> None:
    entered = [folder for folder, _ in folders(WALKS[walk])]
    assert len(entered) == len(set(entered))


@pytest.mark.parametrize("walk", WALKS)
def test_every_file_is_there(walk: str) -> None:
    missing = [
        f"{folder}/{name}"
        for folder, text in folders(WALKS[walk])
        for name in re.findall(r"^\d+\. `([^`]+)`:", text, re.MULTILINE)
        if f"{folder}/{name}" not in tracked()
    ]
    assert missing == []


@pytest.mark.parametrize("walk", WALKS)
def test_files_named_in_passing_are_there(walk: str) -> None:
    named = re.findall(r"`([\w/]+\.py)`", WALKS[walk])
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in tracked())] == []


@pytest.mark.parametrize("walk", WALKS)
def test_files_are_numbered_in_order(walk: str) -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", WALKS[walk], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
