"""``rewardloop policy-worker``. The settings are parsed before the heavy imports, so that --help is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_policy.settings import PolicyWorkerSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit status, which is 0 after a drain."""
    settings = parse(PolicyWorkerSettings, sys.argv[1:] if argv is None else argv, "rewardloop policy-worker")

    import uvloop

    from rewardloop.process.log import configure_logging
    from rewardloop.process.tracing import start_tracing

    is_traced = start_tracing("rewardloop-policy", settings.tracing_endpoint)
    configure_logging(settings.log_level, settings.log_format, is_traced)
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_policy.serving import serve

    return uvloop.run(serve(settings, is_traced))


if __name__ == "__main__":
    raise SystemExit(main())
