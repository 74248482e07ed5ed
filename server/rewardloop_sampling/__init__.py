"""Sampling from a causal language model. It needs torch and transformers, and no other package of this project."""
