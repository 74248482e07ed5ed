"""How far a policy moves from the first one over many rounds of DPO, by what each round is held to.

    python tests/bench/reference_drift.py

A tiny policy answers prompts; a fixed taste judges pairs of its answers with Bradley-Terry noise; each round learns
from its own pairs. One arm is held to the first policy in every round (the anchor), the other to the policy that the
round started from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from support.reference_drift import drift


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.process_time()
    print("reference  seed  KL after rounds 1, 6, 12, 18, .. (nats per response)  liking (0 to 6)")
    for is_pinned in (False, True):
        for seed in range(options.seeds):
            kls, liked = drift(seed, options.rounds, is_pinned=is_pinned)
            shown = [kls[0], *kls[5::6]]
            name = "pinned" if is_pinned else "reset"
            print(f"{name:<9}  {seed:>4}  {'  '.join(f'{kl:6.2f}' for kl in shown)}  {liked:6.2f}", flush=True)
    print(f"{time.process_time() - began:.0f} CPU seconds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
