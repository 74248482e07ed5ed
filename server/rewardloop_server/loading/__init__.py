"""Makes a stored version ready to run: checks, opens and warms it."""
