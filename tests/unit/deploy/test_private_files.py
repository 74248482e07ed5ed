"""What a deployment writes is for its own user, and a directory for everybody is pointed out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewardloop_local.private_files import make_private, open_to_others


def test_new_files_and_directories_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        make_private()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "log").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "log").stat().st_mode & 0o777 == 0o600
    assert open_to_others(tmp_path / "data") == ""


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_directory_that_others_may_enter_is_a_warning(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert open_to_others(tmp_path).startswith(f"WARNING: other users of this machine may read {tmp_path}")
    assert f"{mode:04o}" in open_to_others(tmp_path)
    assert open_to_others(tmp_path / "not-yet") == ""
