"""Takes signals: check, deduplicate, append to the stream. Also the log of generated answers."""
