"""Which signals are erased, for every process that keeps some."""
