"""Sampling from a causal language model. Needs torch alone."""
