"""Ends a command with its exit status. An expected failure is one line on standard error instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from rewardloop_client import InvalidAccess, InvalidAddress, RewardloopError

FATAL = 2


class UsageError(Exception):
    """Raised for a command line that cannot be carried out. The message says why."""


def finish(command: Callable[[], int]) -> NoReturn:
    """Run a command and raise typer.Exit with its status, or with 2 after an error of usage or of a call."""
    try:
        code = command()
    except (UsageError, InvalidAddress, InvalidAccess) as error:
        code = _report(str(error))
    except RewardloopError as error:
        code = _report(f"{error.reason or type(error).__name__}: {error}")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has gone, and Python would complain when it flushes
        code = 0
    raise typer.Exit(code)


def _report(message: str) -> int:
    print(f"rewardloop: {message}", file=sys.stderr)
    return FATAL
