"""The child process that tries a version by torch before the serving process loads it.

It is ``python -m rewardloop_server.torch_engine.probe``; see `rewardloop_server.loading.probe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardloop_server.loading.probe import main

if TYPE_CHECKING:
    from rewardloop_server.loading.opened import Opens


def _opens() -> Opens:
    from rewardloop_server.torch_engine.opening import OpenTorch

    return OpenTorch


if __name__ == "__main__":
    raise SystemExit(main(_opens))
