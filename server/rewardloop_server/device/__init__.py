"""Where a reward model runs."""
