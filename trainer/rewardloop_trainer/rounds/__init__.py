"""The daemon's rounds: when a model learns, and the phases from its data to the promoted version."""
