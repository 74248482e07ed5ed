"""A user's own ONNX graph is served with the scores of its Hugging Face class, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.own_graphs import DECODERS, ENCODERS, OwnBase, own_base

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import RefusedConversation, Turn
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Device
from rewardloop_trainer.commands import export as export_cli

_PROMPTS = ("Why is the sky blue?", "hello world", "Grüße, 日本語 🙂", "def f(x):\n    return x+1", "  outer  ")
_ANSWERS = ("Light scatters.", "no", "fine ok " * 12, "\nanswer")
CONVERSATIONS = [(prompt, answer) for prompt in _PROMPTS for answer in _ANSWERS]


def export(base: OwnBase, *flags: str) -> int:
    store = str(base.directory.parent / "store")
    return export_cli.main(["--onnx", str(base.graph), "--base", str(base.directory), "--store", store, *flags])


def manifest(base: OwnBase) -> Manifest:
    return ModelStore(base.directory.parent / "store").manifest("reward", 1)


def served(base: OwnBase) -> npt.NDArray[np.float32]:
    """The logits of the conversations, through the way that a server loads and runs a version."""
    store = ModelStore(base.directory.parent / "store")
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    model = pool.load(manifest(base), store.fetch("reward", 1))
    groups = model.encoder.groups([([Turn("user", prompt)], [answer]) for prompt, answer in CONVERSATIONS])
    rows = [row for group in groups if not isinstance(group, RefusedConversation) for row in group]
    logits, _ = model.run(rows)
    return logits


def of_class(base: OwnBase) -> npt.NDArray[np.float32]:
    """The logits of the conversations as transformers tokenizes and scores them, one by one."""
    found = []
    for prompt, answer in CONVERSATIONS:
        if base.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            inputs: Any = base.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        else:
            inputs = base.tokenizer(prompt, answer, return_tensors="pt")
        with torch.no_grad():
            found.append(base.model(**inputs).logits.numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_graph_is_served_with_the_scores_of_its_class(kind: str, tmp_path: Path) -> None:
    base = own_base(kind).copy(tmp_path)
    assert export(base) == 0
    expected = of_class(base)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(served(base), expected, atol=1e-5, rtol=0)
    assert manifest(base).heads == 1
    assert manifest(base).metrics["gate_parity"] < 1e-5
    assert manifest(base).notes["layout"].startswith("exact")


def test_a_graph_that_pools_before_an_end_that_is_padding_is_served_so(tmp_path: Path) -> None:
    base = own_base("llama", pad_is_eos=True).copy(tmp_path)
    assert export(base) == 0
    np.testing.assert_allclose(served(base), of_class(base), atol=1e-5, rtol=0)
