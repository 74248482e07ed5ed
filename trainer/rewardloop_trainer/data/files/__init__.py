"""Reads rows of users' files."""
