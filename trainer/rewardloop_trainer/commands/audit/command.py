"""``rewardloop audit``: biases of people and of a reward model, slice by slice, as a page, as JSON and as metrics."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.audit.settings import AuditSettings

PROG = "rewardloop audit"


def main(argv: Sequence[str] | None = None) -> int:
    """Audit what the flags name and print the findings. Returns the exit status."""
    settings = parse(AuditSettings, sys.argv[1:] if argv is None else argv, PROG)
    # Imported here, so that --help does not load torch.
    from rewardloop_trainer.commands.progress import Stages

    stages = Stages(PROG)
    stages("loading torch")
    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_data.source_file import UnreadableFile
    from rewardloop_reward.unusable_base import UnusableBase
    from rewardloop_trainer.commands.audit.run import run_audit, show
    from rewardloop_trainer.reward.start import NothingToTrain

    configure_logging(settings.log_level, settings.log_format)
    try:
        found = run_audit(settings, stages)
    except (StoreError, UnusableBase, UnusableKey, UnreadableFile, NothingToTrain, ValueError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    show(found, settings)
    return 1 if found.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
