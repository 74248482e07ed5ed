"""``rewardloop evaluate``: how good a reward model or a policy is, as a report.

Exit status: 0 if the report was written, 1 if it was and a check refuses the model, 2 if nothing could be measured, 130
after an interrupt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings

PROG = "rewardloop evaluate"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the flags name. Returns the exit status."""
    settings = parse(EvaluateSettings, sys.argv[1:] if argv is None else argv, PROG)
    # Imported here, so that --help does not load torch.
    from rewardloop_trainer.commands.progress import Stages

    stages = Stages(PROG)
    stages("loading torch")
    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_data.source_file import UnreadableFile
    from rewardloop_trainer.commands.by_hand import finish
    from rewardloop_trainer.commands.evaluate.run import evaluate
    from rewardloop_trainer.data.base_text import UnusableBase
    from rewardloop_trainer.data.files.policy_rows import UnusableRows
    from rewardloop_trainer.judging.judge import JudgeError
    from rewardloop_trainer.judging.replies import UnusableWork, WorkInUse
    from rewardloop_trainer.judging.rubric import UnusableRubric
    from rewardloop_trainer.reward.start import NothingToTrain

    configure_logging(settings.log_level, settings.log_format)
    known = (
        *(StoreError, UnreadableFile, UnusableRows, UnusableBase, UnusableKey, NothingToTrain),
        *(JudgeError, UnusableRubric, UnusableWork, WorkInUse),
    )
    return finish(PROG, lambda: evaluate(settings, stages), known, _told)


def _told(error: Exception) -> str:
    from rewardloop_trainer.judging.judge import BudgetSpent

    if isinstance(error, BudgetSpent):
        return f"{error}; the replies are kept, so that the same command goes on tomorrow"
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
