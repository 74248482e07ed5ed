"""Rows of the ecosystem's preference files as feedback events: read by the command line and the trainer."""
