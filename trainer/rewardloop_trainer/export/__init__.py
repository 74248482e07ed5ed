"""A trained reward model as ONNX: graph, adapter, precision, and the proof that it scores as torch does."""
