"""``rewardloop judge``: reads the settings before the heavy imports, so that --help is instant.

Exit status:
    0: It was stopped, or, with --once, every pair is judged and recorded.
    1: The model or the server cannot be used, or pairs are left because the model was away.
    2: The flags, the rubric or the file of pairs are not valid.
    3: With --once, the budget of the day is spent; the same command goes on tomorrow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.judge.settings import JudgeSettings

_PROG = "rewardloop judge"


def main(argv: Sequence[str] | None = None) -> int:
    """Judge until SIGTERM or, with --once, until nothing is left. Returns the exit status."""
    settings = parse(JudgeSettings, sys.argv[1:] if argv is None else argv, _PROG)
    if (missing := settings.missing()) is not None:
        print(f"{_PROG}: {missing}", file=sys.stderr)
        return 2

    from rewardloop.formats.signatures import UnusableKey
    from rewardloop.formats.store import StoreError
    from rewardloop.process.log import configure_logging
    from rewardloop_client import InvalidAccess, InvalidAddress
    from rewardloop_data.source_file import UnreadableFile
    from rewardloop_reward.unusable_base import UnusableBase
    from rewardloop_trainer.commands.judge.run import run
    from rewardloop_trainer.judging.pairs.candidates import UnusablePairs
    from rewardloop_trainer.judging.replies import UnusableWork, WorkInUse
    from rewardloop_trainer.judging.rubric import UnusableRubric

    configure_logging(settings.log_level, settings.log_format)
    try:
        return run(settings)
    except (UnusableRubric, UnusablePairs, UnreadableFile, InvalidAddress, InvalidAccess, UnusableKey) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    except (UnusableBase, StoreError, WorkInUse, UnusableWork, OSError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
