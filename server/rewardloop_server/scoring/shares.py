"""shares: how much of a bounded queue each caller holds, and how much more it may hold."""

from __future__ import annotations

from dataclasses import dataclass

# The most of the bound that one caller may hold while nobody else waits.
_MOST = 0.75


@dataclass(slots=True)
class _Held:
    """Tokens that one caller holds, and the part that they took of the bound when they came."""

    tokens: int = 0
    part: float = 0.0


class Shares:
    """The tokens that callers hold of one queue.

    A caller may hold `_MOST` of what the others leave of the bound, so that there is always room for one more caller
    (dynamic thresholds, Choudhury and Hahne 1998). ``n`` callers that keep asking converge to equal shares of
    ``3 / (1 + 3 n)`` of the bound. A group that is larger than any share is admitted alone: its caller holds nothing
    else, and nobody holds such a group. Against others it counts as a share, because runs are fair between callers and
    do not wait for it.

    The bound follows the pace of the engine. Tokens keep the part of it that they took when they came, so that an
    engine that becomes slower leaves room for those who hold little, whatever the others brought while it was faster.
    """

    def __init__(self) -> None:
        self.total = 0
        self._parts = 0.0  # of all callers
        self._held: dict[str, _Held] = {}
        self._large: set[str] = set()  # callers that may hold more than the largest share

    def hold(self, caller: str, tokens: int, bound: float) -> None:
        """Note that a caller holds more tokens of a queue with this bound."""
        held = self._held.setdefault(caller, _Held())
        part = tokens / bound
        held.tokens += tokens
        held.part += part
        self.total += tokens
        self._parts += part
        if held.part > _MOST:
            self._large.add(caller)

    def give_back(self, caller: str, tokens: int) -> None:
        """Note that a caller holds fewer tokens."""
        self.total -= tokens
        held = self._held.get(caller, _Held())
        if held.tokens > tokens:
            part = held.part * tokens / held.tokens
            held.tokens -= tokens
            held.part -= part
            self._parts -= part
            return
        self._held.pop(caller, None)
        self._large.discard(caller)
        self._parts = self._parts - held.part if self._held else 0.0

    def has_room(self, caller: str, tokens: int, bound: float) -> bool:
        """Return whether a caller may hold that many more tokens.

        Args:
            caller: The caller.
            tokens: Tokens of the group that it brings.
            bound: The bound of the queue, in tokens.
        """
        part, held = tokens / bound, self._part(caller)
        over = {name: excess for name in self._large if (excess := self._excess(name)) > 0}
        if part > _MOST:
            return not held and not over
        others = self._parts - held - sum(excess for name, excess in over.items() if name != caller)
        return held + part <= _MOST * (1.0 - others)

    def _part(self, caller: str) -> float:
        held = self._held.get(caller)
        return 0.0 if held is None else held.part

    def _excess(self, caller: str) -> float:
        """Return what part of the bound a caller holds beyond its share of what the others leave."""
        held = self._part(caller)
        return held - _MOST * max(0.0, 1.0 - self._parts + held)
