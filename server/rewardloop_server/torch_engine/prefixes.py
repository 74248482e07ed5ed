"""Keeps keys and values of recently scored prompts, so that further responses to them compute themselves alone.

A prompt is its token ids, all of them. What is kept belongs to one version at one place, is used for no other, and goes
when the version is closed.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

# A prompt that is shorter takes less time than to keep it would bring.
LEAST_TOKENS = 16

# The version, the place, and the prompt's token ids as bytes.
_Key: TypeAlias = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a prompt leaves behind.

    Attributes:
        layers: Keys and values of each layer, (1, heads, tokens, d) each.
        last: The trunk's last state of the prompt's last token, (1, width), which an empty response ends with.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    last: Tensor

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return self.last.nbytes + sum(key.nbytes + value.nbytes for key, value in self.layers)


class Prefixes:
    """Prompts of all versions of a process. The least recently used are dropped first. Threads may share it.

    Args:
        most_bytes: Most bytes of all that is kept, at all places together.
        on_lookup: Called with whether a prompt was there.
        on_size: Called with the bytes that are kept after each change.
    """

    def __init__(
        self,
        most_bytes: int,
        on_lookup: Callable[[bool], None] = lambda is_hit: None,
        on_size: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._most_bytes = most_bytes
        self._on_lookup, self._on_size = on_lookup, on_size
        self._kept: OrderedDict[_Key, Prefix] = OrderedDict()
        self._size = 0
        self._versions: set[int] = set()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def enter(self) -> int:
        """Return the number of a version that will keep prompts here."""
        with self._lock:
            version = next(self._numbers)
            self._versions.add(version)
        return version

    def leave(self, version: int) -> None:
        """Drop all that the version has kept. It keeps nothing more."""
        with self._lock:
            self._versions.discard(version)
            for key in [key for key in self._kept if key[0] == version]:
                self._drop(key)
            self._on_size(self._size)

    def has(self, version: int, prompt: bytes) -> bool:
        """Return whether a version has kept a prompt at its first place."""
        return (version, 0, prompt) in self._kept

    def look_up(self, version: int, place: int, prompt: bytes) -> Prefix | None:
        """Return what a version has kept of a prompt, or None."""
        with self._lock:
            found = self._kept.get((version, place, prompt))
            if found is not None:
                self._kept.move_to_end((version, place, prompt))
        self._on_lookup(found is not None)
        return found

    def keep(self, version: int, place: int, prompt: bytes, prefix: Prefix) -> None:
        """Keep a prompt of a version, unless it is too large or the version has left."""
        with self._lock:
            if version not in self._versions or prefix.size > self._most_bytes:
                return
            key = (version, place, prompt)
            if key in self._kept:
                self._drop(key)
            self._kept[key] = prefix
            self._size += prefix.size
            while self._size > self._most_bytes:
                self._drop(next(iter(self._kept)))
            self._on_size(self._size)

    def _drop(self, key: _Key) -> None:
        self._size -= self._kept.pop(key).size
