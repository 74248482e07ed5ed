"""Answers Generate: forwards it to the policy worker, and chooses the best of n candidates."""
