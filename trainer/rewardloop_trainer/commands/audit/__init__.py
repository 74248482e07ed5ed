"""The command `audit`: what biases are in the signals and in the model, slice by slice."""
