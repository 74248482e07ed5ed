"""``rewardloop dead-letters``: what became of signals that could not be read, and what is to become of them.

Exit status: 0 if it was done, 1 if a letter was not found or Redis does not answer, 2 if the flags are not valid.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rewardloop.process.settings import parse
from rewardloop_trainer.commands.dead_letters_settings import DeadLettersSettings

if TYPE_CHECKING:
    from rewardloop.formats.operating.letters import Letter

_PROG = "rewardloop dead-letters"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags say with the letters that they name. Returns the exit status."""
    settings = parse(DeadLettersSettings, sys.argv[1:] if argv is None else argv, _PROG)
    if settings.id and settings.all:
        print(f"{_PROG}: --id and --all exclude each other", file=sys.stderr)
        return 2
    if settings.action != "list" and not (settings.id or settings.all):
        print(f"{_PROG}: name a letter: --id ID, or --all", file=sys.stderr)
        return 2

    from rewardloop_trainer.archive.redis_link import REDIS_FAILURES, connect_redis

    try:
        return _run(settings, connect_redis(settings.redis_url))
    except REDIS_FAILURES as error:
        print(f"{_PROG}: Redis does not answer: {error}", file=sys.stderr)
        return 1


def _run(settings: DeadLettersSettings, client: Any) -> int:
    from rewardloop_trainer.archive.dead_letters import drop, letters, newest_id, requeue

    last = newest_id(client)
    done = left = 0
    for letter in letters(client, settings.id):
        match settings.action:
            case "list":
                print(_line(letter) if settings.output == "table" else json.dumps(_summary(letter)))
            case "show":
                print(json.dumps(_whole(letter), indent=None if settings.output == "json" else 2))
            case "requeue":
                stream_id = requeue(client, letter)
                left += stream_id is None
                print(f"{letter.letter_id}: " + (f"requeued as {stream_id}" if stream_id else "has no event: left"))
            case "drop":
                drop(client, letter)
                print(f"{letter.letter_id}: dropped")
        done += 1
        if letter.letter_id == last:
            break  # what a running trainer puts aside again meanwhile is not taken up in the same run
    if settings.id and not done:
        print(f"{_PROG}: no letter has the id {settings.id}", file=sys.stderr)
        return 1
    if settings.action == "list" and settings.output == "table":
        print(f"{done} dead letters", file=sys.stderr)
    return 1 if left else 0


def _summary(letter: Letter) -> dict[str, Any]:
    event = letter.event
    return {
        "id": letter.letter_id,
        "time": datetime.fromtimestamp(letter.time_ms / 1000, UTC).isoformat(timespec="seconds"),
        "bytes": len(letter.data),
        "caller": "" if event is None else event.caller,
        "event_id": "" if event is None else event.event_id,
        "source_id": letter.source_id,
        "reason": letter.reason,
    }


def _line(letter: Letter) -> str:
    about = _summary(letter)
    who = " of ".join(part for part in (about["event_id"], about["caller"]) if part)
    return f"{about['id']}  {about['time']}  {about['bytes']} bytes  {who or '(no event)'}  {about['reason']}"


def _whole(letter: Letter) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    event = None if letter.event is None else MessageToDict(letter.event, preserving_proto_field_name=True)
    return {**_summary(letter), "event": event, "hex": letter.data.hex() if event is None else None}


if __name__ == "__main__":
    raise SystemExit(main())
