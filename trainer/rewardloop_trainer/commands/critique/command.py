"""``rewardloop critique``: reads the settings before the heavy imports, so that --help is instant.

Exit status:
    0: Every answer was revised, written and recorded.
    1: The model or the server cannot be used, or answers are left because the model was away.
    2: The flags, the constitution or the file of prompts are not valid.
    3: The budget of the day is spent; the same command goes on tomorrow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.critique.settings import CritiqueSettings

_PROG = "rewardloop critique"


def main(argv: Sequence[str] | None = None) -> int:
    """Revise all answers. Returns the exit status."""
    settings = parse(CritiqueSettings, sys.argv[1:] if argv is None else argv, _PROG)
    if (missing := settings.missing()) is not None:
        print(f"{_PROG}: {missing}", file=sys.stderr)
        return 2

    from rewardloop.process.log import configure_logging
    from rewardloop_client import InvalidAccess, InvalidAddress
    from rewardloop_data.source_file import UnreadableFile
    from rewardloop_reward.unusable_base import UnusableBase
    from rewardloop_trainer.commands.critique.run import run
    from rewardloop_trainer.data.files.policy_rows import UnusableRows
    from rewardloop_trainer.judging.constitution import UnusableConstitution
    from rewardloop_trainer.judging.replies import UnusableWork, WorkInUse

    configure_logging(settings.log_level, settings.log_format)
    try:
        return run(settings)
    except (UnusableConstitution, UnusableRows, UnreadableFile, InvalidAddress, InvalidAccess) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    except (UnusableBase, WorkInUse, UnusableWork, OSError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
