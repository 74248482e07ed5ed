"""The linear part of a reward model, fitted before the trunk learns."""
