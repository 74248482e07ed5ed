"""``rewardloop gateway``. The settings are parsed before the heavy imports, so that --help is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_gateway.settings import GatewaySettings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit status, which is 0 after a drain."""
    settings = parse(GatewaySettings, sys.argv[1:] if argv is None else argv, "rewardloop gateway")

    import uvloop

    from rewardloop.process.log import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_gateway.serving import serve

    return uvloop.run(serve(settings))


if __name__ == "__main__":
    raise SystemExit(main())
