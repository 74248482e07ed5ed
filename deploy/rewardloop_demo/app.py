"""``rewardloop demo``: the whole loop on this machine with simulated users, live progress, and a report at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_demo.settings import DemoSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    settings = parse(DemoSettings, sys.argv[1:] if argv is None else argv, "rewardloop demo")

    from rewardloop.process.log import configure_logging
    from rewardloop_demo.run import run

    configure_logging("warning", "console")
    return asyncio.run(run(settings))


if __name__ == "__main__":
    raise SystemExit(main())
