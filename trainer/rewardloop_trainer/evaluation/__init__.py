"""Decides whether a candidate may replace the live version, by gates before and people's preferences after."""
