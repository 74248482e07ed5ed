"""The formats that several processes read and write: text layouts, the model store, and Redis keys.

They are the part of the contract that a .proto cannot express. No module imports torch or onnxruntime.
"""
