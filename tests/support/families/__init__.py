"""Tiny random bases of the families of transformers that reward models and policies are made of."""
