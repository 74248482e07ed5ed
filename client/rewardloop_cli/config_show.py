"""`rewardloop config show`: the effective settings of processes, and where each value came from."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from rewardloop.process.process_table import PROCESSES, Process

USAGE = """\
Usage: rewardloop config show [PROCESS] [--json] [--changed] [--config FILE] [SETTINGS]

Prints the settings that PROCESS would run with, and where each value came from: a flag, an environment variable, a
TOML file or the default. Takes the flags of PROCESS. Without PROCESS it shows every process. Secrets are masked.

  --json      print one JSON object instead of a table
  --changed   print only what differs from the defaults
"""


def run(arguments: Sequence[str]) -> int:
    """Print what the arguments ask for. Returns the exit status: 2 for wrong arguments or settings."""
    rest = list(arguments)
    if any(flag in rest for flag in ("-h", "--help", "--help-all")):
        names = ", ".join(process.name for process in PROCESSES)
        print(f"{USAGE}\nPROCESS is one of {names}.")
        return 0
    as_json, only_changed = _take(rest, "--json"), _take(rest, "--changed")
    chosen = list(PROCESSES)
    if rest and not rest[0].startswith("-"):
        name = " ".join(rest[:2]) if " ".join(rest[:2]) in {process.name for process in PROCESSES} else rest[0]
        del rest[: len(name.split())]
        chosen = [process for process in PROCESSES if process.name == name]
        if not chosen:
            known = ", ".join(process.name for process in PROCESSES)
            print(f"rewardloop config show: {name} is not one of {known}", file=sys.stderr)
            return 2
    elif rest:
        print("rewardloop config show: name the PROCESS before its flags", file=sys.stderr)
        return 2
    try:
        _warn_of_unknown_variables(chosen[0])
        found = {process.name: _rows(process, rest, only_changed) for process in chosen}
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        print(
            f"rewardloop config show needs more packages: pip install 'rewardloop[server]' ({missing} is missing)",
            file=sys.stderr,
        )
        return 2
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    for name, rows in found.items():
        _print_table(name, rows)
    return 0


def _take(arguments: list[str], flag: str) -> bool:
    is_given = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return is_given


def _warn_of_unknown_variables(process: Process) -> None:
    from rewardloop.process.environment import unknown_variables

    for message in unknown_variables(process.settings_class(), os.environ):
        print(f"rewardloop config show: {message}", file=sys.stderr)


def _rows(process: Process, flags: Sequence[str], only_changed: bool) -> dict[str, dict[str, object]]:
    from rewardloop.process.settings_origin import effective_settings

    every = effective_settings(process.settings_class(), flags, f"rewardloop {process.name}")
    return {
        each.setting.key: {"value": each.value, "from": each.origin}
        for each in every
        if each.is_changed or not only_changed
    }


def _print_table(name: str, rows: dict[str, dict[str, object]]) -> None:
    from rewardloop.process.settings_help import shown
    from rewardloop.process.settings_origin import NOT_SET

    print(f"rewardloop {name}")
    if not rows:
        print("  every setting has its default")
    keys = max(map(len, rows), default=0)
    for key, row in rows.items():
        value = "" if row["from"] == NOT_SET else shown(row["value"]) or "(empty)"
        print(f"  {key:<{keys}}  {value:<30}  {row['from']}")
