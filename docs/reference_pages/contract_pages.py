"""Errors, metrics, Redis keys and the model store, from the code that defines them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import rewardloop_client
from reference_pages.markdown import block, cell, code, table
from rewardloop.formats import keys, manifest, store
from rewardloop_server.calls.errors import RewardloopError

ROOT = Path(__file__).resolve().parents[2]

E = TypeVar("E")


def errors() -> str:
    """What a caller can be told: code, reason, the client's exception, and when to try again."""
    raised = {kind.reason: kind.__name__ for kind in _with_reason(rewardloop_client.RewardloopError)}
    rows = []
    for error in _with_reason(RewardloopError):
        again = f"{error.default_retry_ms} ms" if error.default_retry_ms is not None else ""
        name = raised.get(error.reason, "")
        rows.append((code(error.reason), code(error.code.name), code(name), again, cell(inspect.getdoc(error) or "")))
    head = ("reason", "gRPC code", "exception of the client", "try again after", "when")
    tree = (inspect.getdoc(inspect.getmodule(rewardloop_client.RewardloopError)) or "").split("\n\n")[1]
    return (
        "# Errors\n\n"
        "Every error carries `google.rpc.ErrorInfo` with the reason and the domain `rewardloop`. An invalid request"
        " carries `BadRequest` with every violation; an error that may pass carries `RetryInfo`.\n\n"
        f"{table(head, rows)}\n## Exceptions of the Python client\n\n"
        "Catch a class of the middle column to handle all below it.\n\n"
        f"{block(tree)}"
    )


def metrics() -> str:
    """The table of all metrics, which `make observability` makes from the registries of the processes."""
    kept = (ROOT / "deploy" / "observability" / "README.md").read_text(encoding="utf-8")
    made = kept.partition("<!-- metrics: make observability -->")[2].partition("<!-- end of metrics -->")[0].strip()
    if not made:
        raise ValueError("the README of deploy/observability has no table of metrics")
    return (
        "# Metrics\n\n"
        "`serving` is the server (port 9464) and the policy worker (port 9466); `trainer` is the trainer (port 9465)."
        f" [Watch it](../how-to/watch.md) says how they are scraped.\n\n{made}\n"
    )


def redis_keys() -> str:
    """Every key, from the header of the module that names them."""
    text = inspect.getdoc(keys) or ""
    first, _, listing = text.partition("\n\n")
    return f"# Redis keys\n\n{cell(first)}\n\n{block(listing)}"


def model_store() -> str:
    """Layout and rules of the store, and the fields of a manifest."""
    sections = ["# Model store", _paragraphs(inspect.getdoc(store) or ""), "## The manifest", _LAYOUT]
    kinds = (manifest.Manifest, manifest.Calibration, manifest.DataRange, manifest.Trunk)
    for kind in kinds:
        rows = [(code(f.name), code(str(f.type)), code(_default(f))) for f in dataclasses.fields(kind)]
        text = f"### {kind.__name__}\n\n{_paragraphs(inspect.getdoc(kind) or '')}\n\n"
        sections.append(text + table(("field", "type", "default"), rows))
    return "\n\n".join(sections)


def _with_reason(base: type[E]) -> Iterator[type[E]]:
    """The classes below ``base`` that have a reason of their own."""
    for kind in base.__subclasses__():
        if "reason" in vars(kind):
            yield kind
        yield from _with_reason(kind)


_LAYOUT = """A version directory holds `manifest.json`, which is written last. The other files depend on the model:

| version | files |
| --- | --- |
| whole reward model | `model.onnx`, `tokenizer.json`, `torch/` with the weights that training goes on from |
| reward model on [another server](../how-to/reward-server.md) | `pooling.json` with proof, `tokenizer.json` |
| reward delta | `adapter.onnx_adapter`, `tokenizer.json`, `torch/lora.safetensors`, `torch/heads.safetensors` |
| policy | a Hugging Face directory: `config.json`, `*.safetensors`, the tokenizer's files |
"""


def _paragraphs(text: str) -> str:
    return "\n\n".join(cell(paragraph) for paragraph in text.split("\n\n"))


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())
