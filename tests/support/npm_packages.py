"""Packages from npm that some tests need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support.tools import missing, tool


def install(source: Path, target: Path) -> Path:
    """A copy of ``source`` within ``target``, with the packages that its lock file pins; the test is skipped or failed
    without npm."""
    tool("node", "nodejs")
    npm = tool("npm", "npm")
    directory = target / source.name
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("node_modules"))
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        missing(f"npm cannot install the packages: {done.stderr.strip()[-500:]}")
    return directory
