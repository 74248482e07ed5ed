"""A trained reward model as ONNX: its graph, adapter and precision, and the check that it scores as torch does."""
