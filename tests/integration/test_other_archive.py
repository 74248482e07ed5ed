"""A work directory is of one archive: with another one a trainer does not start, and says so."""

from __future__ import annotations

from pathlib import Path

from support.trainers import Archiver


def test_a_trainer_with_another_archive_is_refused_and_one_that_was_moved_is_not(
    tmp_path: Path, redis_url: str
) -> None:
    def start(archive: str) -> tuple[int, str]:
        trainer = Archiver(tmp_path, redis_url, "trainer", "--once", "--archive", str(tmp_path / archive))
        return trainer.start().wait(60), trainer.log

    assert start("ledger")[0] == 0
    status, log = start("mistyped")
    assert status == 1
    assert f"belongs to the archive at {tmp_path / 'ledger'}" in log
    assert f"{tmp_path / 'mistyped'} is empty" in log
    assert not (tmp_path / "mistyped" / "archive.json").exists()

    (tmp_path / "ledger").rename(tmp_path / "moved")
    assert start("moved")[0] == 0
    assert start("ledger")[0] == 1  # the old place, where nothing is now
