"""Makes a backup of a deployment that may run meanwhile.

The parts change while they are copied. What is copied first may be older than what is copied later, and never newer:

1. What never changes, versions and segments of the ledger, is copied first, while everything runs.
2. Then trainers are kept from writing, if the ledger is on this machine: they wait, and signals wait in Redis.
3. The trainer's state. A trainer that finds a ledger and a store newer than its state goes on as after a kill.
4. The spool, before Redis: a signal that moves from one to the other is in both, and is recognised by its event_id.
5. Redis, before the ledger: a signal that is archived meanwhile is in both, and is recognised by its stream id.
6. What the ledger has got since the first step, and then the store, so that it has every version that the pointer and
   the state name.

So every signal that was acknowledged before step 4 is in the backup, and is counted once after a restore.
"""

from __future__ import annotations

import gzip
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import redis

from rewardloop_local.backup.bundle import BundleWriter, Contents, StoredFile
from rewardloop_local.backup.errors import BackupError
from rewardloop_local.backup.places import Place, version_of
from rewardloop_local.backup.progress import Progress
from rewardloop_local.backup.redis_dump import dump
from rewardloop_trainer.archive.fence import Fence

REDIS_FILE = "redis.jsonl.gz"
_STATE = "state.json"
_TRIES = 20
_PAUSE_S = 0.5
_SQLITE_PATIENCE_S = 2.0


class _Changed(Exception):
    """Raised when a part changed while it was copied, so that it is copied again."""


class Backup:
    """One backup. Its places are in the order of `take`'s steps: work, spool, ledger, models; some may be absent."""

    def __init__(
        self, places: Sequence[Place], client: redis.Redis, writer: BundleWriter, say: Callable[[str], None]
    ) -> None:
        self._places = {place.part: place for place in places}
        self._client = client
        self._writer = writer
        self._progress = Progress(say)
        self._say = say
        self._files: dict[str, StoredFile] = {}

    def take(self) -> Contents:
        """Write the backup and return what is in it. If it fails, what was written of it is deleted.

        Raises:
            BackupError: If a part keeps changing.
            OSError, redis.RedisError: If a part cannot be read, or the backup cannot be written.
        """
        try:
            for part in ("ledger", "models"):
                self._copy_unchanging(self._places[part])
            self._with_trainers_paused()
            contents = Contents(
                datetime.now(UTC).isoformat(timespec="seconds"), metadata.version("rewardloop"), dict(self._files)
            )
            self._writer.finish(contents)
        except BaseException:
            self._writer.discard()
            raise
        return contents

    def _with_trainers_paused(self) -> None:
        for attempt in range(_TRIES):
            try:
                with self._paused():
                    self._copy_work(self._places["work"])
                    if "spool" in self._places:
                        self._copy_again(self._places["spool"])
                    self._copy_redis()
                    for part in ("ledger", "models"):
                        self._copy_again(self._places[part])
                return
            except _Changed as change:
                self._say(f"{change}: copying it again ({attempt + 1} of {_TRIES})")
                time.sleep(_PAUSE_S)  # without holding the trainer, which may have to end what it does
        raise BackupError("the trainer's state changes faster than it can be copied: stop the trainer and try again")

    def _paused(self) -> AbstractContextManager[None]:
        ledger = self._places["ledger"]
        if not ledger.is_local or not ledger.path.exists():
            return nullcontext()  # an object store has no locks; the order of the steps alone must do
        return Fence(ledger.url).paused()

    def _copy_unchanging(self, place: Place) -> None:
        self._copy(place, {name: size for name, size in place.files().items() if place.is_unchanging(name)})

    def _copy_again(self, place: Place) -> None:
        """Copy what is new or may have changed, and forget what is no longer there, such as compacted segments.

        Raises `_Changed` if a segment of the ledger is compacted meanwhile.
        """
        sizes = place.files()
        for name in [name for name in self._files if name.startswith(f"{place.part}/")]:
            if name.partition("/")[2] not in sizes:
                del self._files[name]
        is_copied = {name: place.is_unchanging(name) and f"{place.part}/{name}" in self._files for name in sizes}
        vanished = self._copy(place, {name: size for name, size in sizes.items() if not is_copied[name]})
        if vanished and place.part == "ledger":
            raise _Changed("the ledger was compacted")

    def _copy_work(self, place: Place) -> None:
        """Copy the trainer's directory. Raises `_Changed` if the trainer went on meanwhile."""
        before = _content(place, _STATE)
        self._copy_again(place)
        for pools in sorted(place.path.glob("*.sqlite")):
            self._copy_pools(place, pools)
        if _content(place, _STATE) != before:
            raise _Changed("the trainer's state has changed")

    def _copy_pools(self, place: Place, pools: Path) -> None:
        """Copy a database of SQLite. Raises `_Changed` while the trainer writes to it and waits for us."""
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / pools.name
            with (
                closing(sqlite3.connect(f"{pools.as_uri()}?mode=rw", uri=True, timeout=_SQLITE_PATIENCE_S)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                try:
                    source.backup(target)
                except sqlite3.OperationalError as error:
                    raise _Changed(f"{pools.name}: {error}") from error
                except sqlite3.DatabaseError as error:
                    self._say(f"{pools.name} is damaged and left out; the trainer makes it again: {error}")
                    return
            with copy.open("rb") as file:
                self._store(place, pools.name, file, copy.stat().st_size)

    def _copy_redis(self) -> None:
        self._say("copying Redis")
        with tempfile.TemporaryFile() as file:
            with gzip.open(file, "wt", encoding="ascii", compresslevel=3) as lines:
                for line in dump(self._client):
                    lines.write(f"{line}\n")
            size = file.tell()
            file.seek(0)
            self._files[REDIS_FILE] = self._writer.copy(REDIS_FILE, file, size, lambda count: None)

    def _copy(self, place: Place, sizes: Mapping[str, int]) -> list[str]:
        """Copy files, and return those that were deleted meanwhile. Of a version that was, nothing is kept."""
        self._say(f"copying {place.part}: {len(sizes)} files")
        self._progress.begin(f"copying {place.part}", sum(sizes.values()))
        vanished: list[str] = []
        for name in sizes:
            try:
                with place.opened(name) as (file, size):
                    self._store(place, name, file, size)
            except FileNotFoundError:
                vanished.append(name)
        versions = {version_of(name) for name in vanished} - {None} if place.part == "models" else set()
        for name in [name for name in self._files if version_of(name.partition("/")[2]) in versions]:
            del self._files[name]
        return vanished

    def _store(self, place: Place, name: str, file: BinaryIO, size: int) -> None:
        stored = f"{place.part}/{name}"
        self._files[stored] = self._writer.copy(stored, file, size, self._progress.moved)


def _content(place: Place, name: str) -> bytes:
    try:
        with place.opened(name) as (file, _):
            return file.read()
    except FileNotFoundError:
        return b""
