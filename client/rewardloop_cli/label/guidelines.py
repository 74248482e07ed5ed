"""The commands `label guidelines set` and `label guidelines show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError


def set_text(server: str, project: str, file: Path, *, as_json: bool) -> int:
    """Set the guidelines of a project, and print their version. Returns 0. Raises UsageError and RewardloopError."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise UsageError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    with open_client(server) as client:
        version = client.labelling.set_guidelines(project, text)
    if as_json:
        print(json.dumps({"project": project, "version": version}))
    else:
        print(f"{project}: guidelines {version}" if version else f"{project}: no guidelines any more")
    return 0


def show(server: str, project: str, version: str, *, as_json: bool) -> int:
    """Print guidelines: the text alone, or as JSON with its version. Returns 0. Raises RewardloopError."""
    with open_client(server) as client:
        found = client.labelling.guidelines(project, version=version)
    if as_json:
        print(json.dumps({"project": project, "version": found.version, "text": found.text}))
    elif found.version:
        print(found.text, end="" if found.text.endswith("\n") else "\n")
    else:
        print(f"rewardloop: {project} has no guidelines", file=sys.stderr)
    return 0
