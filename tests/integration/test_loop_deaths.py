"""Rounds that take their process with them, disks that are full, clocks that jump."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.signals import choice
from support.small_disk import fill, small_disk
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.loop import Learner, Loop, LoopSettings
from rewardloop_trainer.rounds.pauses import Interrupted
from rewardloop_trainer.rounds.trainer_state import StateFile
from rewardloop_trainer.vocabulary import Outcome

_DYING = """
import os, pathlib, sys, threading
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.rounds.loop import Learner, Loop, LoopSettings
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.trainer_state import StateFile

directory = pathlib.Path(sys.argv[1])

def run(current):
    (directory / "rounds" / "reward-1").mkdir(parents=True, exist_ok=True)
    os.kill(os.getpid(), 9)

learner = Learner("reward", 10, 600.0, run)
parts = [Ledger(directory / "ledger"), StateFile(directory), TrainerMetrics(), threading.Event()]
loop = Loop([learner], *parts, LoopSettings(directory, max_deaths=2))
loop.run(max_rounds=1)
"""


class World:
    """A ledger with signals, and a loop over it whose clock is set by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self.ledger.append([Recorded(f"{1000 + i}-0", choice(i)) for i in range(12)])
        self.metrics = TrainerMetrics()
        self.stop = threading.Event()
        self.file = StateFile(directory)
        self.now = 1_000_000.0

    def loop(self, run: object, max_deaths: int = 2) -> Loop:
        learner = Learner("reward", 10, 600.0, run)  # type: ignore[arg-type]
        return Loop(
            [learner],
            self.ledger,
            self.file,
            self.metrics,
            self.stop,
            LoopSettings(self.directory, poll_s=0.001, max_deaths=max_deaths),
            clock=lambda: self.now,
        )

    def ended(self, outcome: str) -> float:
        labels = {"model": "reward", "outcome": outcome}
        return self.metrics.registry.get_sample_value("rewardloop_trainer_rounds_total", labels) or 0.0

    def disk_errors(self) -> float:
        return self.metrics.registry.get_sample_value("rewardloop_trainer_disk_errors_total") or 0.0


def test_round_that_kills_its_process_is_given_up_and_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(2):
        died = subprocess.run([sys.executable, "-c", _DYING, str(tmp_path)], capture_output=True, timeout=120)
        assert died.returncode == -9, died.stderr.decode()
    assert world.file.read().of("reward").round is not None
    done = subprocess.run([sys.executable, "-c", _DYING, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    state = world.file.read().of("reward")
    assert (state.round, state.rounds, state.learned_through) == (None, 1, "1011-0")
    assert "died 2 times in phase 'training'" in (tmp_path / "failed" / "reward-1" / "error.txt").read_text()
    assert (tmp_path / "failed" / "reward-1" / "round").is_dir()
    assert world.ledger.row_count == 12


def test_each_phase_has_deaths_of_its_own_and_a_clean_stop_is_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    starts: list[int] = []

    def dies_later(current: CurrentRound) -> Outcome:
        starts.append(current.state.starts)
        current.reach(replace(current.state, phase="trained"))
        starts.append(current.state.starts)
        world.stop.set()
        raise Interrupted

    for _ in range(4):
        world.loop(dies_later).run()
        world.stop.clear()
    assert starts == [1] * 8
    assert world.ended("given_up") == 0

    state = world.file.read()
    present = state.of("reward").round
    assert present is not None
    dead = replace(state.of("reward"), round=replace(present, starts=2))
    world.file.write(state.with_model("reward", dead))
    world.loop(dies_later).run(max_rounds=1)
    assert world.ended("given_up") == 1


def test_full_disk_postpones_a_round_and_counts_no_failure(tmp_path: Path) -> None:
    world = World(tmp_path)
    tries: list[float] = []

    def run(current: CurrentRound) -> Outcome:
        tries.append(world.now)
        if len(tries) < 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return "promoted"

    loop = world.loop(run)
    while not loop.rounds_ended:
        loop._run_due()
        world.now += 1.0
    assert (world.ended("promoted"), world.ended("failed")) == (1, 0)
    assert len(tries) == 6


def _write_weights(path: Path) -> None:
    save_file({"weights": torch.zeros(1_000_000)}, path)


def _write_tokenizer(path: Path) -> None:
    Tokenizer(WordLevel({str(i): i for i in range(100_000)}, unk_token="0")).save(str(path))


@pytest.mark.parametrize("write", [_write_weights, _write_tokenizer])
def test_a_full_disk_that_a_library_reports_in_its_own_way_postpones_the_round(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    world = World(tmp_path / "work")
    with small_disk(tmp_path / "disk", kib=8_192) as disk:
        ballast = fill(disk)

        def run(current: CurrentRound) -> Outcome:
            write(disk / "file")
            return "promoted"

        loop = world.loop(run)
        loop._run_due()
        assert (world.ended("failed"), world.disk_errors()) == (0, 1)
        ballast.unlink()
        world.now += 300.0
        loop._run_due()
        assert (world.ended("promoted"), world.ended("failed")) == (1, 0)


def test_a_disk_too_full_for_the_state_file_costs_no_round_either(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        world = World(disk)
        ballasts: list[Path] = []

        def run(current: CurrentRound) -> Outcome:
            if len(ballasts) < 4:  # more often than the deaths that a round is allowed
                ballasts.append(fill(disk))
                (disk / "candidate").write_bytes(b"0" * 100_000)
            return "promoted"

        loop = world.loop(run, max_deaths=2)
        while not loop.rounds_ended:
            for _ in range(2):  # the second attempt finds no room even for its beginning
                loop._run_due()
                world.now += 300.0
            ballasts[-1].unlink(missing_ok=True)
        assert (len(ballasts), world.ended("promoted"), world.ended("failed"), world.ended("given_up")) == (4, 1, 0, 0)
        assert world.disk_errors() == 8


def test_an_error_that_a_full_disk_led_to_postpones_the_round(tmp_path: Path) -> None:
    world = World(tmp_path)

    def run(current: CurrentRound) -> Outcome:
        try:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        except OSError as error:
            raise RuntimeError("the candidate was not written") from error

    world.loop(run)._run_due()
    assert (world.ended("failed"), world.disk_errors()) == (0, 1)


def test_an_error_of_the_disk_that_is_not_its_room_is_a_failure(tmp_path: Path) -> None:
    world = World(tmp_path)

    def run(current: CurrentRound) -> Outcome:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    world.loop(run)._run_due()
    assert (world.ended("failed"), world.disk_errors()) == (1, 0)


def test_clock_set_back_holds_up_no_round(tmp_path: Path) -> None:
    world = World(tmp_path)
    tries: list[float] = []

    def run(current: CurrentRound) -> Outcome:
        tries.append(world.now)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return "promoted"

    loop = world.loop(run)
    loop._run_due()
    loop._run_due()
    assert len(tries) == 1  # it pauses
    world.now -= 86_400
    loop._run_due()
    assert len(tries) == 2
    world.ledger.append([Recorded("2000-0", choice(100))])
    world.now -= 86_400
    loop._run_due()  # one new signal, and the last round ended in the future
    assert len(tries) == 3


def test_clock_set_forward_starts_a_round_early_and_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    rounds: list[int] = []

    def run(current: CurrentRound) -> Outcome:
        rounds.append(current.state.new_signals)
        return "promoted"

    loop = world.loop(run)
    loop._run_due()
    world.ledger.append([Recorded("2000-0", choice(100))])
    loop._run_due()
    assert rounds == [12]
    world.now += 10 * 365 * 86_400
    loop._run_due()
    loop._run_due()
    assert rounds == [12, 1]
