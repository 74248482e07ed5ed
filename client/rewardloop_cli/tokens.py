"""The command `token create`: makes a caller's token, and the entry for the server's callers file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rewardloop.formats.tokens import new_token, token_digest
from rewardloop_cli.failures import UsageError

_ROLES = ("score", "feedback", "generate", "label", "view", "admin")


def create(caller: str, roles: Sequence[str], days: float | None, callers: Path | None) -> int:
    """Print the token on standard output. The server's entry goes to standard error, or into the file ``callers``."""
    unknown = sorted(set(roles) - set(_ROLES))
    if not roles or unknown:
        raise UsageError(f"--role is one of {', '.join(_ROLES)}" + (f", not {', '.join(unknown)}" if unknown else ""))
    if not caller or any(character.isspace() for character in caller):
        raise UsageError("--name must be a word without spaces")
    token = new_token()
    entry = _entry(caller, sorted(set(roles)), days, token_digest(token))
    if callers is None:
        print(f"Add this to the server's callers file (--callers):\n\n{entry}", file=sys.stderr)
        print("The token, which is shown only now:\n", file=sys.stderr)
    else:
        _append(callers, entry)
        print(f"Added to {callers}. The token, which is shown only now:\n", file=sys.stderr)
    print(token)
    return 0


def _entry(caller: str, roles: Sequence[str], days: float | None, digest: str) -> str:
    lines = ["[[token]]", f"caller = {json.dumps(caller)}", f'sha256 = "{digest}"', f"roles = {json.dumps(roles)}"]
    if days is not None:
        expires = datetime.now(UTC) + timedelta(days=days)
        lines.append(f"expires = {expires.isoformat(timespec='seconds')}")
    return "\n".join(lines) + "\n"


def _append(path: Path, entry: str) -> None:
    """Replace the file as a whole, so that a server that reads it meanwhile sees the old content or the new one."""
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
        new = path.with_name(f".{path.name}.new")
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(before + gap + entry)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
