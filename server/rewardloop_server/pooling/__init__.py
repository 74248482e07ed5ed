"""Reward versions that a server elsewhere runs: vLLM or SGLang, as servers that pool."""
