"""The policy's losses, as pure functions of tensors."""
