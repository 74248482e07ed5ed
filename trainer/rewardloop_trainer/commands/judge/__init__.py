"""The command `judge`: a worker that labels pairs by a model and measures it against people."""
