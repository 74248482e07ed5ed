"""The command `feedback erase`: asks for an erasure, waits for those who hold signals, and says what they did."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewardloop.formats.erasing.words import erased_in_words
from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.feedback.summary import counted
from rewardloop_client import ErasureProgress, RewardloopClient, TaughtVersion

_FIRST_POLL_S, _LAST_POLL_S = 0.25, 5.0  # each is a line of the audit log
_BY_HAND = (
    "backups, exported files, files of 'judge' and 'critique', replicas of Redis and earlier snapshots of disks are not"
    " rewritten: docs/how-to/erase.md"
)


@dataclass(frozen=True, slots=True)
class Whose:
    """What to erase: exactly one of the first three fields is not empty. "-" reads its value from standard input."""

    annotator: str
    generation: str
    erasure: str
    caller: str | None


def run(whose: Whose, server: str, *, wait_s: float, as_json: bool) -> int:
    """Erase, and wait. Returns 0 if all holders of signals are done, 1 if some are not done within ``wait_s``.

    Raises UsageError and RewardloopError.
    """
    annotator, generation, erasure = map(_given, (whose.annotator, whose.generation, whose.erasure))
    if len([each for each in (annotator, generation, erasure) if each]) != 1:
        raise UsageError("name one of --annotator, --generation and --erasure")
    with open_client(server, timeout_s=30.0) as client:
        progress = client.erase(
            annotator_id=annotator, generation_id=generation, erasure_id=erasure, caller=whose.caller
        )
        progress = _waited(client, progress, wait_s)
    if as_json:
        print(json.dumps(_fields(progress), indent=2))
    else:
        print("\n".join(_lines(progress)))
    return 0 if progress.done else 1


def look(whose: Whose, server: str, *, wait_s: float, as_json: bool) -> int:
    """Show what would be erased. Returns 0, or 1 if the trainer does not answer.

    Raises UsageError and RewardloopError.
    """
    annotator, generation = map(_given, (whose.annotator, whose.generation))
    if whose.erasure or bool(annotator) == bool(generation):
        raise UsageError("--dry-run needs one of --annotator and --generation")
    deadline, pause = time.monotonic() + wait_s, _FIRST_POLL_S
    with open_client(server, timeout_s=30.0) as client:
        while True:
            found = client.taught_versions(annotator_id=annotator, generation_id=generation, caller=whose.caller)
            if found.done or time.monotonic() >= deadline:
                break
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LAST_POLL_S)
    if as_json:
        looked_at = found.looked_at and found.looked_at.isoformat()
        print(json.dumps(asdict(found) | {"looked_at": looked_at}, indent=2))
    elif found.done:
        print(f"{counted(found.signals, 'signal')} in the ledger; nothing was erased")
        print("\n".join(_taught(found.versions)))
    else:
        print("the trainer, which keeps the ledger, has not answered")
    return 0 if found.done else 1


def _given(text: str) -> str:
    """Return the text, or a line of standard input if it is "-", which keeps an id out of the list of processes.

    Spaces around an id are kept, because the id without them may be another person's.
    """
    return sys.stdin.readline().rstrip("\r\n") if text == "-" else text


def _waited(client: RewardloopClient, progress: ErasureProgress, wait_s: float) -> ErasureProgress:
    deadline = time.monotonic() + wait_s
    pause = _FIRST_POLL_S
    while not progress.done and time.monotonic() < deadline:
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LAST_POLL_S)
        progress = client.erase(erasure_id=progress.erasure_id)
    return progress


def _fields(progress: ErasureProgress) -> dict[str, Any]:
    return asdict(progress) | {"requested_at": progress.requested_at.isoformat(), "by_hand": _BY_HAND}


def _lines(progress: ErasureProgress) -> Iterator[str]:
    yield f"erasure {progress.erasure_id}: {'done' if progress.done else 'not done yet'}"
    for holder in progress.holders:
        yield f"  {holder.name}: {holder.state}" + (
            f", erased {erased_in_words(holder.erased)}" if holder.state == "done" else ""
        )
        for note in holder.notes:
            yield f"    {note}"
    if progress.done or progress.versions:
        yield from _taught(progress.versions)
    if not progress.done:
        yield f"  'rewardloop feedback erase --erasure {progress.erasure_id}' waits on"
    yield f"  by hand: {_BY_HAND}"


def _taught(versions: Sequence[TaughtVersion]) -> Iterator[str]:
    for each in versions:
        how = "learned from it" if each.directly else "descends from a version that learned from it"
        yield f"  {each.model} {each.version} {how}"
    if not versions:
        yield "  no version learned from it"
