"""The command `evaluate`: how good a reward model or a policy is."""
