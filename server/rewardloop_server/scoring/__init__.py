"""Scores groups: tokenize, wait in a lane, batch, run, reply."""
