"""A signal's way: check, deduplicate, append to the stream; and the log of what was generated."""
