"""shares: how much of a bounded queue each caller holds, and how much more it may hold."""

from __future__ import annotations

# The most of the bound that one caller may hold while nobody else waits.
_MOST = 0.75


class Shares:
    """The tokens that callers hold of one queue.

    A caller may hold `_MOST` of what the others leave of the bound, so that there is always room for one more caller
    (dynamic thresholds, Choudhury and Hahne 1998). ``n`` callers that keep asking converge to equal shares of
    ``3 / (1 + 3 n)`` of the bound. A group that is larger than any share is admitted alone: its caller holds nothing
    else, and nobody holds such a group. Against others it counts as a share, because runs are fair between callers and
    do not wait for it.
    """

    def __init__(self) -> None:
        self.total = 0
        self._held: dict[str, int] = {}
        self._large: set[str] = set()  # callers that may hold more than the largest share

    def hold(self, caller: str, tokens: int, bound: float) -> None:
        """Note that a caller holds more tokens of a queue with this bound."""
        self._held[caller] = held = self._held.get(caller, 0) + tokens
        self.total += tokens
        if held > _MOST * bound:
            self._large.add(caller)

    def give_back(self, caller: str, tokens: int) -> None:
        """Note that a caller holds fewer tokens."""
        self.total -= tokens
        held = self._held.get(caller, 0) - tokens
        if held > 0:
            self._held[caller] = held
            return
        self._held.pop(caller, None)
        self._large.discard(caller)

    def has_room(self, caller: str, tokens: int, bound: float) -> bool:
        """Return whether a caller may hold that many more tokens.

        Args:
            caller: The caller.
            tokens: Tokens of the group that it brings.
            bound: The bound of the queue, in tokens.
        """
        most, held = _MOST * bound, self._held.get(caller, 0)
        over = {name: excess for name in self._large if (excess := self._excess(name, bound)) > 0}
        if tokens > most:
            return not held and not over
        others = self.total - held - sum(excess for name, excess in over.items() if name != caller)
        return held + tokens <= _MOST * (bound - others)

    def _excess(self, caller: str, bound: float) -> float:
        """Return how many tokens a caller holds beyond its share of what the others leave."""
        held = self._held.get(caller, 0)
        return held - _MOST * max(0.0, bound - self.total + held)
