"""The mechanics that every training run shares: checkpoints, gradients, processes, reports."""
