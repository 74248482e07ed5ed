"""The daemon's rounds: when a model learns, and each phase from its data to the promoted version."""
