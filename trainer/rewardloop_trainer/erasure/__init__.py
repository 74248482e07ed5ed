"""Carries erasures out on what the trainer keeps: the ledger, Redis, and the work directory."""
