"""Which archive this is: an id in a file beside the segments, which goes with them wherever they are copied."""

from __future__ import annotations

import json
import uuid

from rewardloop_trainer.archive.small_files import SmallFiles

IDENTITY = "archive.json"


class OtherArchive(Exception):
    """Raised when a work directory is used with another archive than the one whose signals it has learned."""


def identity_of(files: SmallFiles) -> str:
    """Return the id of the archive, or "" if it has none yet.

    Raises:
        OtherArchive: If the file of the id cannot be read.
        OSError: If the place does not answer.
    """
    data = files.read(IDENTITY)
    if data is None:
        return ""
    try:
        return str(json.loads(data)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise OtherArchive(f"{files.place}/{IDENTITY} does not say which archive this is: {error!r}") from error


def identify(files: SmallFiles) -> str:
    """Return the id of the archive, which gets one if it has none. Raises as `identity_of`, and `Fenced`."""
    known = identity_of(files)
    if not known:
        known = uuid.uuid4().hex
        files.write(IDENTITY, json.dumps({"id": known}).encode())
    return known
