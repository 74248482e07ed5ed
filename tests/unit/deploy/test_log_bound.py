"""A log that a process appends to is cut, and the process goes on writing to it."""

from __future__ import annotations

from pathlib import Path

from rewardloop_local.log_bound import bound_log


def test_a_long_log_keeps_its_end_apart_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "serve.log"
    with path.open("ab") as log:
        log.write(b"x" * 100)
        log.flush()
        assert not bound_log(path, 100)
        log.write(b"y")
        log.flush()
        assert bound_log(path, 100)
        log.write(b"z")
    assert path.read_bytes() == b"z"
    assert (tmp_path / "serve.log.1").read_bytes() == b"x" * 100 + b"y"
