"""What an export can fail with."""

from __future__ import annotations


class ExportFailed(RuntimeError):
    """The architecture cannot be traced into a graph with a dynamic batch and length."""


class NoAdapterInputs(ExportFailed):
    """A linear layer, or the heads, cannot be given inputs in the graph as it was traced."""


class ParityError(Exception):
    """The exported model's logits are not the torch model's."""
