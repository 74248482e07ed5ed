"""Learning from a policy's own answers: one loop, and a small file for each algorithm."""
