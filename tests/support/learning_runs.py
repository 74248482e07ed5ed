"""What the environment says of the tests that train: their seeds and their threads.

Every test with the mark ``learning`` adds REWARDLOOP_TEST_SEED to its seeds, and trains with OMP_NUM_THREADS threads;
``learning_matrix.py`` sets both.
"""

from __future__ import annotations

import os

SEED = "REWARDLOOP_TEST_SEED"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
_OFFSET = int(os.environ.get(SEED, "0"))


def learning_seed(seed: int = 0) -> int:
    """The seed to use for ``seed``: the same one unless REWARDLOOP_TEST_SEED asks for another run."""
    return seed + _OFFSET
