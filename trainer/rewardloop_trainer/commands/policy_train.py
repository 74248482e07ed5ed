"""``rewardloop policy-train``: trains one policy, outside of the daemon's rounds, into a Hugging Face directory.

Several processes, on one machine or many, train it together under torchrun:
``torchrun --nproc-per-node 2 -m rewardloop_trainer.commands.policy_train --base ... --prompts ... --out ...``
Exit status: 0 if all went well, 1 if the policy was written but its gate refuses to publish it, 2 if nothing was
written, 130 after an interrupt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.policy_train_settings import PolicyTrainSettings

PROG = "rewardloop policy-train"


def main(argv: Sequence[str] | None = None) -> int:
    """Train the policy that the flags describe. Returns the exit status."""
    settings = parse(PolicyTrainSettings, sys.argv[1:] if argv is None else argv, PROG)
    # Imported here, so that --help does not load torch.
    from rewardloop_trainer.commands.progress import Stages

    stages = Stages(PROG)
    stages("loading torch")
    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_client import RewardloopError
    from rewardloop_data.source_file import SourceFile, UnreadableFile
    from rewardloop_trainer.commands.by_hand import finish
    from rewardloop_trainer.commands.people import people_in_memory
    from rewardloop_trainer.commands.policy_run import run_policy_training
    from rewardloop_trainer.data.files.policy_rows import UnusableRows, read_policy_data
    from rewardloop_trainer.judging.judge import JudgeError
    from rewardloop_trainer.judging.replies import UnusableWork, WorkInUse
    from rewardloop_trainer.judging.rubric import UnusableRubric
    from rewardloop_trainer.learning.world import joined
    from rewardloop_trainer.policy.online.sampler import SamplerError
    from rewardloop_trainer.reward.start import NothingToTrain

    configure_logging(settings.log_level, settings.log_format)

    def work() -> int:
        with people_in_memory() as people:
            stages(f"reading {settings.prompts}")
            data = read_policy_data(SourceFile.of(settings.prompts), people.add)
            data = data.weighed(people.trust(settings.trust))
        with joined():
            return run_policy_training(settings, data, stages)

    def told(error: Exception) -> str:
        if isinstance(error, SamplerError):
            return f"no answers: {error}"
        if not isinstance(error, RewardloopError):
            return str(error)
        return (
            f"no scores from {settings.server}: {error.reason or type(error).__name__}: {error}\n"
            "start a server with `rewardloop serve`, or name one with --server; the same command goes on from here"
        )

    known = (
        *(RewardloopError, SamplerError, UnreadableFile, UnusableRows, StoreError, UnusableKey, NothingToTrain),
        *(JudgeError, UnusableRubric, UnusableWork, WorkInUse),
    )
    return finish(PROG, work, known, told)


if __name__ == "__main__":
    status = main()
    from rewardloop_trainer.learning.world import leave

    leave(status)
