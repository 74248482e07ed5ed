"""Puts a backup back into places that are empty, after every file was compared with its SHA-256.

The model store comes first and Redis last, so that whatever is there at any time names only what is there already.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

from rewardloop.formats.erasing.erasures import ERASURE_KEYS, ERASURES
from rewardloop_local.backup.bundle import BundleReader
from rewardloop_local.backup.errors import BackupError
from rewardloop_local.backup.places import Place
from rewardloop_local.backup.progress import Progress
from rewardloop_local.backup.redis_dump import PATTERN, load, names_in
from rewardloop_local.backup.take import REDIS_FILE

_CHUNK = 4 * 2**20


class Restore:
    """Puts one backup back."""

    def __init__(
        self, places: Sequence[Place], client: redis.Redis, reader: BundleReader, say: Callable[[str], None]
    ) -> None:
        self._places = {place.part: place for place in places}
        self._client: Any = client
        self._reader = reader
        self._progress = Progress(say)
        self._erasures: Path | None = None  # the register of what was erased since the backup
        self._say = say

    def put_back(self, *, replace: bool) -> int:
        """Verify the backup, then write all of it. Returns how many keys of Redis were written.

        Args:
            replace: What the places hold is moved aside, and keys of rewardloop in Redis are deleted. Without it a
                place that is not empty is refused.

        Raises:
            BackupError: If the backup is damaged, or a place is not empty. Nothing was written then.
            OSError, redis.RedisError: If a place cannot be written. Then they hold a part of the backup.
        """
        contents = self._reader.contents
        self._refuse_homeless()
        self._say(f"checking the backup of {contents.created_at}: {len(contents.files)} files")
        self._progress.begin("checking", contents.size)
        self._reader.verify(self._progress.moved)
        self._empty(replace)
        for part in ("models", "ledger", "work", "spool"):
            self._write(part)
        self._keep_erasures()
        self._say("writing Redis")
        with self._reader.opened(REDIS_FILE) as file, gzip.open(file, "rt", encoding="ascii") as lines:
            written = load(self._client, lines)
        os.sync()
        return written

    def _keep_erasures(self) -> None:
        """Put the register of erasures that were asked for since the backup beside the ledger, so that they hold."""
        if self._erasures is None or not self._erasures.is_dir():
            return
        ledger = self._places["ledger"]
        there = set(ledger.files())
        for path in sorted(self._erasures.glob("*.json")):
            name, data = f"{ERASURES}/{path.name}", path.read_bytes()
            if path.name == ERASURE_KEYS and name in there:
                with ledger.opened(name) as (file, _):
                    data = json.dumps({**json.load(file), **json.loads(data)}).encode()
            with ledger.writing(name) as target:
                target.write(data)
        self._say("what was erased since the backup is erased again when the trainer starts")

    def _refuse_homeless(self) -> None:
        """Raise BackupError for a part of the backup that has no place to be put back to."""
        parts = {name.partition("/")[0] for name in self._reader.contents.files} - {REDIS_FILE}
        if missing := sorted(parts - set(self._places)):
            raise BackupError(f"the backup has a {missing[0]}, and --{missing[0]} does not say where to put it")

    def _empty(self, replace: bool) -> None:
        taken = [place for place in self._places.values() if not place.is_empty()]
        keys = next(names_in(self._client), None)
        if not replace and (taken or keys):
            found = [place.url for place in taken] + ([f"Redis (keys {PATTERN})"] if keys else [])
            raise BackupError(f"not empty: {', '.join(found)}; --replace moves files aside and deletes the keys")
        for place in taken:
            aside = place.move_aside()
            self._say(f"{place.url} was moved to {aside}")
            if place.part == "ledger":
                self._erasures = Path(aside) / ERASURES
        if keys:
            deleted = sum(int(self._client.delete(name)) for name in list(names_in(self._client)))
            self._say(f"{deleted} keys of Redis were deleted")

    def _write(self, part: str) -> None:
        place = next((place for name, place in self._places.items() if name == part), None)
        names = [name for name in self._reader.contents.files if name.startswith(f"{part}/")]
        if place is None or not names:
            return
        self._say(f"writing {part}: {len(names)} files")
        self._progress.begin(f"writing {part}", sum(self._reader.contents.files[name].size for name in names))
        # A version's manifest makes it visible, so that it comes after the version's other files.
        for name in sorted(names, key=lambda name: (name.endswith("manifest.json"), name)):
            with self._reader.opened(name) as source, place.writing(name.partition("/")[2]) as target:
                while data := source.read(_CHUNK):
                    target.write(data)
                    self._progress.moved(len(data))
