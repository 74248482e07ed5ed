"""ONNX graphs: what a server feeds them, and what one reads of a file before ONNX Runtime does."""
