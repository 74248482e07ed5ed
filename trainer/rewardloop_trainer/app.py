"""``rewardloop train``: reads the settings before the heavy imports, so that --help is instant.

Exit status:
    0: The trainer was stopped or, with --once, did all there was to do. A refused candidate is a normal outcome; the
        last line of the log counts it.
    1: Another trainer took over, or the trainer cannot work: its metrics port is taken, the archive is not its work
        directory's, or a file is damaged.
    2: The flags or settings are not valid.
    3: With --once, a round failed: it was skipped or given up, or waits to be tried again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.settings import TrainSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Learn until SIGTERM or, with --once, until nothing is left to do. Returns the exit status."""
    settings = parse(TrainSettings, sys.argv[1:] if argv is None else argv, "rewardloop train")

    from rewardloop.process.log import configure_logging
    from rewardloop.process.tracing import start_tracing

    is_traced = start_tracing("rewardloop-trainer", settings.tracing_endpoint)
    configure_logging(settings.log_level, settings.log_format, is_traced)
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_trainer.daemon import run

    return run(settings, is_traced)


if __name__ == "__main__":
    raise SystemExit(main())
