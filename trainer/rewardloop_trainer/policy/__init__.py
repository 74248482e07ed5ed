"""How a policy learns: supervised, from people's preferences, or from its own scored answers."""
