"""The commands below `rewardloop label`."""
