"""Which version of each model is active, and how requests move from one to the next."""
