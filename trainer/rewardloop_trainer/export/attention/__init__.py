"""How attention of an exported graph knows what a token may see."""
