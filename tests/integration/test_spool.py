"""The spool's files: order, crashes, damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_disk import fill, small_disk

from rewardloop_server.feedback.spool import Spool, SpoolInUse


def opened(directory: Path, **settings: int) -> Spool:
    spool = Spool(directory, **settings)
    spool.open()
    return spool


def drained(spool: Spool, most: int = 3) -> list[bytes]:
    found: list[bytes] = []
    while payloads := spool.read(most):
        found += payloads
        spool.drop(payloads)
    return found


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [f"signal {i}".encode() for i in range(start, start + count)]


def test_signals_come_out_in_the_order_in_which_they_went_in_over_many_files(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=60)
    for i in range(0, 30, 2):
        spool.write(numbered(2, i))
    assert len(list(tmp_path.glob("*.spool"))) > 3
    assert spool.events == 30
    assert drained(spool) == numbered(30)
    assert spool.is_empty
    assert list(tmp_path.glob("*.spool")) == []


def test_reading_takes_nothing_out(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.write(numbered(5))
    assert spool.read(2) == spool.read(2) == numbered(2)


def test_what_was_written_while_draining_follows(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.write(numbered(3))
    spool.drop(spool.read(2))
    spool.write(numbered(3, 3))
    assert drained(spool) == numbered(4, 2)


def test_next_process_finds_what_was_not_drained(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=60)
    spool.write(numbered(4))
    spool.write(numbered(4, 4))
    spool.drop(spool.read(4))
    spool.close()
    again = opened(tmp_path)
    assert drained(again) == numbered(4, 4)


@pytest.mark.parametrize("tail", [b"\x05", b"\x40\0\0\0\1\2\3\4half", b"\0" * 64, b"\xff" * 64])
def test_torn_tail_is_cut_off_and_writing_goes_on(tmp_path: Path, tail: bytes) -> None:
    spool = opened(tmp_path)
    spool.write(numbered(3))
    spool.close()
    (file,) = tmp_path.glob("*.spool")
    file.write_bytes(file.read_bytes() + tail)
    again = opened(tmp_path)
    assert again.events == 3
    again.write(numbered(2, 3))
    assert drained(again) == numbered(5)


def test_damaged_file_gives_what_can_be_read_and_is_kept(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=10)
    spool.write(numbered(3))
    spool.write(numbered(3, 3))
    spool.close()
    first = min(tmp_path.glob("*.spool"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    again = opened(tmp_path)
    assert drained(again) == [*numbered(2), *numbered(3, 3)]
    assert first.with_suffix(".damaged").read_bytes() == data


def test_directory_is_one_processs_alone(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(SpoolInUse):
        opened(tmp_path)
    spool.close()
    opened(tmp_path).close()


def test_full_disk_refuses_and_keeps_what_is_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        spool = opened(disk)
        spool.write(numbered(3))
        ballast = fill(disk)
        with pytest.raises(OSError, match="No space"):
            spool.write([b"x" * 20_000])
        assert spool.events == 3
        ballast.unlink()
        spool.write(numbered(3, 3))
        assert drained(spool) == numbered(6)
        spool.close()
