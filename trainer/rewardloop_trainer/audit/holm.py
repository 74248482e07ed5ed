"""How many of several findings stand, if each of them could be chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def holm(tests: Sequence[Callable[[float], bool]], alpha: float) -> set[int]:
    """Return the places of the tests that reject, so that any wrong one is among them with probability ``alpha``.

    The bound holds however the tests depend on each other (Holm 1979, "A simple sequentially rejective multiple test
    procedure"): of m tests those that reject at alpha / m do, then of the k others those at alpha / k, and so on until
    no more do.

    Args:
        tests: Each says whether it rejects at a level. One that does at a level does at every higher one.
        alpha: The probability of any wrong rejection.
    """
    rejected: set[int] = set()
    while len(rejected) < len(tests):
        level = alpha / (len(tests) - len(rejected))
        more = {i for i, test in enumerate(tests) if i not in rejected and test(level)}
        if not more:
            break
        rejected |= more
    return rejected
