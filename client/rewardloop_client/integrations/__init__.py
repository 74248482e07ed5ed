"""The reward model in other trainers: `trl` (a reward function), `verl` (a compute_score), `openrlhf` (an address).

None of these trainers is imported here.
"""
