"""Finds environment variables that are spelt like settings of rewardloop and are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel

from rewardloop.process.process_table import PROCESSES
from rewardloop.process.setting_names import ENV_NESTED_DELIMITER, ENV_PREFIX, environment_names, nearest, settings_of

# Read by the tests, not by a process.
_OF_TESTS = re.compile(r"REWARDLOOP_(REQUIRE_TOOLS|CONTAINER_STEPS|TEST_\w+)")
# Kubernetes and Docker set these in every container, for each service whose name begins with "rewardloop".
_OF_SERVICE = re.compile(
    r"(REWARDLOOP_(?:\w+?_)??)(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def unknown_variables(settings_class: type[BaseModel], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield one message for each ``REWARDLOOP_*`` variable that no process of rewardloop reads.

    The settings of the other processes are imported only if the class itself does not know a variable.
    """
    own = environment_names(settings_class)
    names = {name.upper(): name for name in environment if name.upper().startswith(ENV_PREFIX)}
    unknown = sorted(name for name in names if name not in own and not _is_others(name, names))
    if not unknown:
        return
    groups = tuple(f"{name}{ENV_NESTED_DELIMITER}" for name in own - {each.env for each in settings_of(settings_class)})
    known = own.union(*(environment_names(process.settings_class()) for process in PROCESSES))
    for name in unknown:
        if name in known:
            continue
        guess = _nearest(name, own) or _nearest(name, known)
        hint = f"; did you mean {guess}?" if guess else ""
        # Validation refuses an unknown name in a group, so that it is not ignored.
        fate = "" if name.startswith(groups) else " and is ignored"
        yield f"the environment variable {names[name]} is no setting of rewardloop{fate}{hint}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    by_key = {_key(each): each for each in known}
    guess = nearest(_key(name), by_key)
    return by_key[guess] if guess else None


def _key(variable: str) -> str:
    return variable.removeprefix(ENV_PREFIX).replace(ENV_NESTED_DELIMITER, ".").lower()


def _is_others(name: str, names: Iterable[str]) -> bool:
    if _OF_TESTS.fullmatch(name):
        return True
    service = _OF_SERVICE.fullmatch(name)
    # A misspelt setting may end in _PORT, too: only a service has all of these variables.
    return service is not None and f"{service[1]}SERVICE_HOST" in names
