"""One reward round: the ledger's range -> train -> gate -> export -> calibrate -> publish -> promote.

Each arrow ends in a phase of the state file, and each is repeatable: a round that was killed goes on in the phase
that it had reached, with the same data, seed and parent.
"""

from __future__ import annotations
