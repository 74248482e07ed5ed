"""Which pairs are judged: where they come from, which are picked, and what became of each."""
