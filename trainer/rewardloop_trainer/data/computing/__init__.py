"""What a loaded model computes: in which type, and how probable tokens are, block by block."""
