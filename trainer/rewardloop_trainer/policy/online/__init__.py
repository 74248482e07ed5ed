"""Learning from a policy's own responses: one loop, and one file for each algorithm."""
