"""Programs that some tests need and that not every machine has."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

REQUIRED = "REWARDLOOP_REQUIRE_TOOLS"


def tool(name: str, package: str) -> str:
    """The program's path. Without it the test is skipped, or fails where the environment requires all tools (CI)."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed (Debian: apt-get install {package})")
    return path


def missing(reason: str) -> NoReturn:
    """End the test for lack of something outside the project: skipped, or failed where `REQUIRED` is set."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)
