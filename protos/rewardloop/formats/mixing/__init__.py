"""Names of reward models, and mixtures of several: their file, their rules, and their total."""
