"""What a loaded causal language model computes: how probable tokens are, block by block."""
