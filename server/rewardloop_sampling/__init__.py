"""Sampling from a causal language model. It needs torch and transformers; what calls a vLLM server needs httpx2."""
