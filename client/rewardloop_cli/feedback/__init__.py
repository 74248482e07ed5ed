"""The commands below `rewardloop feedback`: import data files, show how they are read, and take imports back."""
