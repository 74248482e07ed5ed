"""Measurements of reward models."""
