"""What biases are in the signals and in the model that learned from them, slice by slice."""
