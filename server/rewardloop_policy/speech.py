"""The text of a request's candidates while they are sampled: where it stops, and what of it may be shown already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rewardloop_policy.growing_text import UNFINISHED

# Told of the index of a candidate and the next part of its text.
OnText: TypeAlias = Callable[[int, str], None]


@dataclass(slots=True)
class Speech:
    """What the candidates of one request have said. Its methods run in the sampling thread.

    A batch that failed may be sampled again: with the same seed it says the same, and nothing is shown twice.

    Attributes:
        stop: Texts before which a candidate ends.
        on_text: Told of new text; None if nobody listens.
        wants_tokens: Whether the answers have the text and log-probability of each token.
    """

    stop: Sequence[str] = ()
    on_text: OnText | None = None
    wants_tokens: bool = False
    _shown: dict[int, int] = field(default_factory=dict, init=False)  # characters, by candidate

    def hear(self, candidate: int, text: str) -> bool:
        """Take the text of a candidate so far, and return whether it is over because it contains a stop text."""
        end = self._end(text)
        self._show(candidate, text[: self._settled(text)] if end is None else text[:end])
        return end is not None

    def whole(self, candidate: int, text: str) -> tuple[str, bool]:
        """Take the whole text of a candidate. Return it up to the first stop text, and whether there is one."""
        end = self._end(text)
        self._show(candidate, text[:end])
        return text[:end], end is not None

    def _end(self, text: str) -> int | None:
        return min((place for each in self.stop if (place := text.find(each)) >= 0), default=None)

    def _settled(self, text: str) -> int:
        """Return how many characters stay, whatever comes: no unfinished character, no beginning of a stop text."""
        end = len(text.rstrip(UNFINISHED))
        for stop in self.stop:
            longest = min(len(stop) - 1, end)
            begun = next((size for size in range(longest, 0, -1) if text[:end].endswith(stop[:size])), 0)
            end = min(end, len(text[:end]) - begun)
        return end

    def _show(self, candidate: int, text: str) -> None:
        shown = self._shown.get(candidate, 0)
        if self.on_text is not None and len(text) > shown:
            self._shown[candidate] = len(text)
            self.on_text(candidate, text[shown:])
