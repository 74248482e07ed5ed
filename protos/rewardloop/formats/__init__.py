"""What several processes read and write: text layouts, the model store, Redis keys.

These modules are the part of the contract that a .proto cannot carry. They import neither torch nor onnxruntime.
"""
