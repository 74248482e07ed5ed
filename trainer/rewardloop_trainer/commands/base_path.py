"""Tells a mistyped path of a base from the id of a model on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from rewardloop_trainer.data.base_text import UnusableBase


def check_base_path(base: str) -> None:
    """Refuse a base that is meant as a path if nothing is there.

    Without this check, a mistyped path is asked of the hub as a model's id, which takes a minute where there is no
    network. A hub id is ``name`` or ``owner/name``.

    Raises:
        UnusableBase: If ``base`` looks like a path, and no such file or directory exists.
    """
    if _is_path(base) and not Path(base).exists():
        hint = " (~ is not expanded here)" if base.startswith("~") else ""
        raise UnusableBase(f"{base}: there is no such directory{hint}")


def _is_path(base: str) -> bool:
    if base in (os.curdir, os.pardir) or base.startswith((os.sep, f".{os.sep}", f"..{os.sep}", "~")):
        return True
    return base.count(os.sep) > 1 or (os.sep in base and Path(base).parent.is_dir())
