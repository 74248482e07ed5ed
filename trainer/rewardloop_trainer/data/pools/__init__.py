"""Keeps, in a file of the work directory, the side of every question and the old and held-out signals of each model."""
