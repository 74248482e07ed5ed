"""The command `off-policy`: the value of a policy from the ledger, before it serves."""
