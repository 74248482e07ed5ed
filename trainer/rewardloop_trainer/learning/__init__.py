"""The mechanics that training runs share: checkpoints, gradients, several processes, reports."""
