"""The policy's losses and what they are made of, as pure functions: tensors in, tensors out."""
