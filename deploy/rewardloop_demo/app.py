"""``rewardloop demo``: runs the whole loop on this machine with simulated users, and reports what it learned."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_demo.settings import DemoSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if the demo has shown that both models learned."""
    settings = parse(DemoSettings, sys.argv[1:] if argv is None else argv, "rewardloop demo")

    from rewardloop.process.log import configure_logging
    from rewardloop_local.private_files import make_private
    from rewardloop_local.proxies import exempt_loopback

    configure_logging("warning", "console")
    exempt_loopback()
    make_private()
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_demo.run import run

    return asyncio.run(run(settings))


if __name__ == "__main__":
    raise SystemExit(main())
