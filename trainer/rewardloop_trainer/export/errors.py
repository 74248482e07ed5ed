"""The errors of an export."""

from __future__ import annotations


class ExportFailed(RuntimeError):
    """Raised when an architecture cannot be traced into a graph of any batch size and length."""


class NoAdapterInputs(ExportFailed):
    """Raised when a linear layer or the heads of a traced graph cannot be given adapter inputs."""


class ParityError(Exception):
    """Raised when the exported model's logits differ from the torch model's."""


class UnusableGraph(ValueError):
    """Raised when a user's own graph cannot be served, or does not give the scores of its base."""
