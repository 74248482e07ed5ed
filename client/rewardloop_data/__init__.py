"""Reads rows of preference files, as the command line and the trainer take them."""
