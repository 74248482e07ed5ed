"""``rewardloop serve``. The settings are parsed before the heavy imports, so that --help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rewardloop.process.settings import parse
from rewardloop_server.settings import PROG, ServeSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit status, which is 0 after a drain."""
    settings = parse(ServeSettings, sys.argv[1:] if argv is None else argv, PROG)

    if settings.front_processes:
        return _supervise(settings)

    import uvloop

    from rewardloop.process.log import configure_logging
    from rewardloop.process.tracing import start_tracing

    # The tokenizers package would start threads of its own beside `tokenize_threads`, which take cores from the engine.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    is_traced = start_tracing("rewardloop-server", settings.tracing_endpoint)
    configure_logging(settings.log_level, settings.log_format, is_traced)
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_server.serving import serve

    return uvloop.run(serve(settings, is_traced))


def _supervise(settings: ServeSettings) -> int:
    import asyncio

    from rewardloop.process.log import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    # Imported here, because gRPC reads how much it is to log when it is imported.
    from rewardloop_server.fronts.supervisor import supervise

    return asyncio.run(supervise(settings))


if __name__ == "__main__":
    raise SystemExit(main())
