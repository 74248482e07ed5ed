"""Measurements of policies."""
