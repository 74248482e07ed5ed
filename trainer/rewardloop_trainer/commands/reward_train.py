"""``rewardloop reward-train``: trains one reward model, outside of the daemon's rounds, into a version's files.

Several processes, on one machine or many, train it together under torchrun:
``torchrun --nproc-per-node 2 -m rewardloop_trainer.commands.reward_train --base ... --data ... --out ...``
Exit status: 0 if all went well, 1 if the version was written but its gate refuses it, 2 if nothing was written, 130
after an interrupt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.reward_train_settings import RewardTrainSettings

PROG = "rewardloop reward-train"


def main(argv: Sequence[str] | None = None) -> int:
    """Train the reward model that the flags describe. Returns the exit status."""
    settings = parse(RewardTrainSettings, sys.argv[1:] if argv is None else argv, PROG)
    # Imported here, so that --help does not load torch.
    from rewardloop_trainer.commands.progress import Stages

    stages = Stages(PROG)
    stages("loading torch")
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_data.source_file import SourceFile, UnreadableFile
    from rewardloop_trainer.commands.by_hand import finish
    from rewardloop_trainer.commands.people import people_in_memory
    from rewardloop_trainer.commands.reward_run import RewardTrainRun
    from rewardloop_trainer.data.files.policy_rows import UnusableRows
    from rewardloop_trainer.data.files.reward_rows import read_reward_data
    from rewardloop_trainer.export.errors import ExportFailed
    from rewardloop_trainer.learning.world import World, joined
    from rewardloop_trainer.reward.start import NothingToTrain

    configure_logging(settings.log_level, settings.log_format)

    def work() -> int:
        with people_in_memory() as people:
            stages(f"reading {settings.data}")
            data = read_reward_data(SourceFile.of(settings.data), people.add)
            run = RewardTrainRun(settings, data, people, stages)
            with joined():
                is_first = World().is_first
                run.train()
            return run.conclude() if is_first else 0  # the others need not wait for the export

    known = (UnreadableFile, UnusableRows, NothingToTrain, ExportFailed, StoreError)
    return finish(PROG, work, known)


if __name__ == "__main__":
    status = main()
    from rewardloop_trainer.learning.world import leave

    leave(status)
