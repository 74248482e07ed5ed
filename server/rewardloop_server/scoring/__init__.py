"""A scored group's way: tokenize, queue, batch, run, reply."""
