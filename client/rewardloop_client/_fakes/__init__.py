"""Parts of the client in memory, each with the rules of one service."""
