"""Whom to trust: how reliable each person's judgements are, how far people agree, and who gives them by a habit."""
