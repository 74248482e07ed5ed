"""``rewardloop train``: settings first, so that --help is instant, then the heavy imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_trainer.settings import TrainSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Learn until SIGTERM. Returns the exit status: 0 after a clean stop, 1 when another trainer took over."""
    settings = parse(TrainSettings, sys.argv[1:] if argv is None else argv, "rewardloop train")

    from rewardloop.process.log import configure_logging
    from rewardloop.process.tracing import start_tracing
    from rewardloop_trainer.daemon import run

    is_traced = start_tracing("rewardloop-trainer", settings.tracing_endpoint)
    configure_logging(settings.log_level, settings.log_format, is_traced)
    return run(settings, is_traced)


if __name__ == "__main__":
    raise SystemExit(main())
