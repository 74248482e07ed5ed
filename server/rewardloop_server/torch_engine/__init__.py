"""Runs reward versions by torch instead of their graphs. Nothing here is imported unless the settings choose it."""
