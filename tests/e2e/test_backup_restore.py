"""A deployment is backed up under load, everything is destroyed, and the backup serves and trains on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.learning_runs import learning_seed
from support.signals import choice
from support.tiny_encoder import save_tiny_encoder
from support.up_processes import PATIENCE_S, Up

from rewardloop.v1 import feedback_pb2
from rewardloop_client import RewardloopClient, Unavailable
from rewardloop_trainer.commands.export import main as export


def _event(number: int) -> feedback_pb2.FeedbackEvent:
    event = choice(number, prompts=1_000_000)
    event.ClearField("arrival_time")  # the server sets it
    return event


def _command(module: str, *args: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


def _record(client: RewardloopClient, numbers: Sequence[int]) -> None:
    client.record_batch([_event(number) for number in numbers])


@pytest.mark.learning
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_after_everything_is_destroyed_the_backup_serves_and_trains_on(tmp_path: Path) -> None:
    base = save_tiny_encoder(tmp_path / "base", learning_seed())
    assert export(["--base", str(base), "--store", str(tmp_path / "data" / "models"), "--heads", "2"]) == 0
    shutil.rmtree(base)
    up = Up(tmp_path / "data", tmp_path / "up.log")
    acknowledged: list[int] = []
    stop = threading.Event()

    def keep_recording(client: RewardloopClient) -> None:
        for number in range(300, 3_000):
            if stop.is_set():
                return
            try:
                client.record(_event(number))
            except Unavailable:
                return
            acknowledged.append(number)
            time.sleep(0.02)

    with up.running() as client:
        _record(client, range(300))
        up.until(lambda: client.get_version("reward").version == "2")
        asked = ("question 3", ["poor answer 9", "good answer 9"])
        before = [score.score for score in client.score(*asked).scores]
        writer = threading.Thread(target=keep_recording, args=(client,))
        writer.start()
        up.until(lambda: len(acknowledged) > 20)
        certain = {f"e{number}" for number in [*range(300), *acknowledged]}
        _command("rewardloop_local.backup.make_command", str(tmp_path / "backup.tar"), "--data", str(up.data))
        stop.set()
        writer.join(30)
    shutil.rmtree(up.data)

    _command("rewardloop_local.backup.restore_command", str(tmp_path / "backup.tar"), "--data", str(up.data))
    with up.running() as client:
        assert client.get_version("reward").version == "2"
        assert [score.score for score in client.score(*asked).scores] == pytest.approx(before, abs=1e-6)
        up.until(lambda: certain <= set(up.archived()))
        _record(client, [*range(300), *range(5_000, 5_300)])  # the first ones again, as a caller that is not sure does
        up.until(lambda: {f"e{number}" for number in range(5_000, 5_300)} <= set(up.archived()))
        up.until(lambda: int(client.get_version("reward").version) > 2)
        found = up.archived()
        assert len(found) == len(set(found))
