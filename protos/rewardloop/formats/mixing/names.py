"""The names of models: what a name may be, and which names a process is told to use.

A name is a directory of the store, a field of a Redis hash and a label's value in metrics. Nothing is ever named after
what a caller sends: a process knows the names of its settings and refuses all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# The model that scores if a request names none, and that learns from signals without an aspect.
REWARD: Final = "reward"
POLICY: Final = "policy"

MOST_NAMED: Final = 16  # reward models beside "reward" in one process: each has a version and more in memory
MOST_NAME_CHARS: Final = 32
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a model, a mixture or a part."""
    return len(text) <= MOST_NAME_CHARS and _NAME.fullmatch(text) is not None


def further_models(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of reward models beside "reward", as settings give them, checked.

    Raises:
        ValueError: A name is not valid, is taken, or is given twice, or there are too many.
    """
    found: list[str] = []
    for name in names:
        if len(found) == MOST_NAMED:
            raise ValueError(f"at most {MOST_NAMED} reward models beside {REWARD!r}")
        if not is_name(name):
            raise ValueError(
                f"{name[: MOST_NAME_CHARS + 8]!a} is no name of a model: 1 to {MOST_NAME_CHARS} of a-z, 0-9, - and _, "
                "a letter first"
            )
        if name in (REWARD, POLICY):
            raise ValueError(f"{name!r} needs no mention: name the reward models beside it")
        if name in found:
            raise ValueError(f"{name!r} is named twice")
        found.append(name)
    return tuple(found)
