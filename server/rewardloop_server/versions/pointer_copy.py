"""The copy of the pointers in the model store, as a server uses it: seldom, patiently, and without failing for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from rewardloop.formats.storing.active import Active
from rewardloop.formats.storing.pointer_file import PointerFile, PointerFileError

log = structlog.get_logger()

# How often the copy is looked at while Redis's pointer is followed, and how soon a failed write is tried again.
EVERY_S = 10.0
# How long the store may take, so that one which hangs keeps nobody from following Redis.
_PATIENCE_S = 5.0


@dataclass(slots=True)
class _Copy:
    """One model's copy.

    Attributes:
        active: The copy as it was last read or written; None if there is none.
        failure: Why it could not be read the last time; empty if it could.
        read_at: When it was last looked at, in seconds of the monotonic clock.
        write_at: From when on it may be written.
    """

    active: Active | None = None
    failure: str = ""
    read_at: float = float("-inf")
    write_at: float = float("-inf")


class PointerCopies:
    """Reads and writes the copies in a thread of its own. A failure is logged once, and is no failure of the caller.

    Args:
        file: The store's copies. None if there are none.
    """

    def __init__(self, file: PointerFile | None) -> None:
        self._file = file
        self._copies: dict[str, _Copy] = {}
        self._told: set[tuple[str, str]] = set()
        self._thread = ThreadPoolExecutor(1, "pointer-copy")

    def is_fresh(self, model: str, max_age_s: float) -> bool:
        """Return whether `read` would look at the store."""
        return self._file is None or time.monotonic() - self._of(model).read_at < max_age_s

    async def read(self, model: str, max_age_s: float) -> Active | None:
        """Return the copy, as it was at most ``max_age_s`` seconds ago; None if there is none or it cannot be read."""
        copy = self._of(model)
        if self._file is not None and not self.is_fresh(model, max_age_s):
            copy.read_at = time.monotonic()
            try:
                copy.active = await self._in_thread(self._file.read, model)
                copy.failure = ""
            except PointerFileError as error:
                copy.failure = str(error)
                self._tell("the store's copy of the pointer cannot be read", model, error)
        return copy.active

    def failure(self, model: str) -> str:
        """Return why the copy could not be read the last time; empty if it could."""
        return self._of(model).failure

    async def keep(self, model: str, active: Active) -> None:
        """Write the pointer if the copy is an earlier one."""
        copy = self._of(model)
        if self._file is None or (copy.active is not None and copy.active.is_as_late_as(active) and not copy.failure):
            return
        if time.monotonic() < copy.write_at:
            return
        try:
            copy.active = await self._in_thread(self._file.keep, model, active)
            copy.failure = ""
        except PointerFileError as error:
            copy.write_at = time.monotonic() + EVERY_S
            self._tell("this process cannot keep the pointer in the store: a trainer must", model, error)

    def _of(self, model: str) -> _Copy:
        return self._copies.setdefault(model, _Copy())

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        task = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        try:
            return await asyncio.wait_for(task, _PATIENCE_S)
        except TimeoutError as error:
            raise PointerFileError(f"the store does not answer in {_PATIENCE_S:g} s") from error

    def _tell(self, event: str, model: str, error: PointerFileError) -> None:
        if (model, event) not in self._told:
            self._told.add((model, event))
            log.warning(event, model=model, error=str(error))
