"""Signals and files as typed training records, and records as token sequences."""
