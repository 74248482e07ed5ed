"""Tells a mistyped path of a base from the id of a model on the hub, and asks the hub once for an id."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from rewardloop_reward.unusable_base import UnusableBase

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATIENCE_S = 10.0
_NOT_THERE = (401, 403, 404)


def check_base(base: str, say: Callable[[str], None]) -> None:
    """Refuse a base that is nowhere: a path without a directory, or an id that the hub does not have.

    Transformers would ask the hub for a mistyped path as well, and would ask it for a minute if it does not answer.

    Args:
        base: Directory or hub id.
        say: Takes one line before the hub is asked.

    Raises:
        UnusableBase: If the base is not there, or the hub does not answer.
    """
    check_base_path(base)
    if not Path(base).exists():
        say(f"there is no directory {base} here: asking the hub for a model of that name")
        _ask_hub(base)


def check_base_path(base: str) -> None:
    """Refuse a base that is meant as a path if nothing is there. A hub id is ``name`` or ``owner/name``.

    Raises:
        UnusableBase: If ``base`` looks like a path, and no such file or directory exists.
    """
    if _is_path(base) and not Path(base).exists():
        hint = " (~ is not expanded here)" if base.startswith("~") else ""
        raise UnusableBase(f"{base}: there is no such directory{hint}")


def _is_path(base: str) -> bool:
    if base.startswith((os.curdir, "~")) or not _HUB_ID.fullmatch(base):
        return True
    return os.sep in base and Path(base).parent.is_dir()


def _ask_hub(base: str) -> None:
    """Ask once whether the hub has the model. Raises UnusableBase if it has not, or does not answer."""
    from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils._headers import build_hf_headers

    file = "config.json"
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(base, file), str):
        return
    try:
        answer = get_session().head(hf_hub_url(base, file), headers=build_hf_headers(), timeout=_PATIENCE_S)
    except Exception as error:  # its kinds are those of the HTTP library that the hub's package has chosen
        raise UnusableBase(
            f"{base}: there is no such directory here, and the hub ({constants.ENDPOINT}) does not answer: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if answer.status_code in _NOT_THERE:
        raise UnusableBase(
            f"{base}: there is no such directory here, and the hub has no model of that name, or shows it only with a "
            "token (HF_TOKEN)"
        )
