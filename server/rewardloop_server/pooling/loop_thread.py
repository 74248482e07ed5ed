"""An event loop in a thread of its own, on which the engine's threads have their calls made, and from which they are
cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads. The thread starts with the first of them.

    Args:
        name: Of the thread.
        at_end: What runs last, if anything has run.
    """

    def __init__(self, name: str, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name = name
        self._at_end = at_end
        self._changing = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let the work run, and return its future at once. Cancelling this cancels the work.

        Raises RuntimeError once this is closed.
        """
        try:
            with self._changing:  # so that it comes to the loop before the end does, which cancels what has come
                return asyncio.run_coroutine_threadsafe(work, self._started())
        except BaseException:
            work.close()
            raise

    def close(self) -> None:
        """End the thread, and cancel what runs on it."""
        with self._changing:
            loop, self._loop, self._is_closed = self._loop, None, True
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _started(self) -> asyncio.AbstractEventLoop:
        """Return the loop, whose thread runs. Call it under the lock."""
        if self._is_closed:
            raise RuntimeError(f"the thread {self._name} has ended")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True).start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            loop.run_until_complete(self._end(asyncio.all_tasks(loop)))
        finally:
            loop.close()

    async def _end(self, left: Collection[asyncio.Task[Any]]) -> None:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._at_end()
