"""The reward model: its network, its likelihoods, its training and its calibration."""
