"""Pages of a mapped file leave memory once they are read, and nothing that was written is lost."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rewardloop.process.mapped_pages import drop_read_pages, dropping_read_pages, mappings_to_drop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
SIZE, PAGE = 96 * 2**20, 4096
SMALL = 64 * 2**20  # a mapping with fewer bytes in memory is left alone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of ones, as large as weights are."""
    path = tmp_path / "weights"
    np.ones(SIZE, dtype=np.uint8).tofile(path)
    return path


def resident(path: Path) -> int:
    """Bytes of the file's mappings that are in memory."""
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(path.resolve()))}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    return sum(map(int, found)) * 1024


def test_pages_that_were_read_are_dropped_and_can_be_read_again(file: Path) -> None:
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    assert int(mapped.sum()) == SIZE
    assert resident(file) == SIZE
    drop_read_pages()
    assert resident(file) == 0
    assert int(mapped.sum()) == SIZE


def test_a_mapping_that_was_written_to_stays(file: Path) -> None:
    mapped = np.memmap(file, dtype=np.uint8, mode="c")
    mapped[5 * PAGE] = 7
    assert int(mapped.sum()) == SIZE + 6
    drop_read_pages()
    assert resident(file) == SIZE
    assert int(mapped.sum()) == SIZE + 6


def test_only_the_named_file_is_dropped(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    np.ones(SIZE, dtype=np.uint8).tofile(other)
    one, two = (np.memmap(path, dtype=np.uint8, mode="r") for path in (file, other))
    assert int(one.sum()) == int(two.sum()) == SIZE
    drop_read_pages(file)
    assert (resident(file), resident(other)) == (0, SIZE)


def test_pages_are_dropped_as_long_as_the_context_lasts(file: Path) -> None:
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    with dropping_read_pages(file):
        for _ in range(3):
            assert int(mapped.sum()) == SIZE
            until = time.monotonic() + 20
            while resident(file) >= SMALL and time.monotonic() < until:
                time.sleep(0.01)
            assert resident(file) < SMALL
    assert int(mapped.sum()) == SIZE
    assert resident(file) == SIZE


@pytest.mark.parametrize(
    ("held", "is_dropped"),
    [
        ("Anonymous: 0 kB\nSwap: 0 kB", True),
        ("Anonymous: 4 kB\nSwap: 0 kB", False),
        ("Anonymous: 0 kB\nSwap: 4 kB", False),
        ("Swap: 0 kB", False),
    ],
)
def test_written_pages_that_are_swapped_out_count_as_written(held: str, is_dropped: bool) -> None:
    described = f"1000-6001000 rw-p 00000000 08:01 7 /a b/weights\nRss: 98304 kB\n{held}\nVmFlags: rd wr\n"
    others = "7000000-7001000 r--p 00000000 08:01 8 /other\nRss: 4 kB\nAnonymous: 0 kB\nSwap: 0 kB\n"
    expected = [(0x1000, 0x6000000)] if is_dropped else []
    assert mappings_to_drop(described + others, "/a b/weights") == expected
    assert mappings_to_drop(others + described, "") == expected
    assert mappings_to_drop(described, "/a b") == []


def test_nothing_is_dropped_if_the_system_does_not_describe_its_mappings(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    assert int(mapped.sum()) == SIZE
    before = resident(file)

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        drop_read_pages()
        with dropping_read_pages(file):
            time.sleep(0.3)
    assert resident(file) == before
