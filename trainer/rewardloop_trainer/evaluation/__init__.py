"""Whether a candidate may replace the live version, and whether people prefer it."""
