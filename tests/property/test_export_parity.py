"""Whatever a pair is batched with, ONNX gives the logits that torch gives for the pair alone."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reward_bases import Export, exported, mixed_sequences, trained_delta

from rewardloop.formats.text import Encoded, Turn
from rewardloop_trainer.export.adapter import write_adapter
from rewardloop_trainer.export.feeds import by_prompt
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, Runs, open_session, run_session, run_trees
from rewardloop_trainer.reward.examples import collate, logits_of

TEXTS = 200
_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120)


@cache
def session(kind: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(exported(kind).onnx), providers=["CPUExecutionProvider"])


def alone(export: Export, sequences: list[Encoded]) -> np.ndarray:  # type: ignore[type-arg]
    pad = export.encoder.format.pad
    with torch.inference_mode():
        return torch.cat([export.model(*collate([s], pad)) for s in sequences]).numpy()


@cache
def known(kind: str) -> tuple[list[Encoded], np.ndarray]:  # type: ignore[type-arg]
    sequences = mixed_sequences(exported(kind).encoder, TEXTS, seed=11)
    return sequences, alone(exported(kind), sequences)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@settings(max_examples=40)
@given(places=st.lists(st.integers(0, TEXTS - 1), min_size=1, max_size=24))
def test_a_score_does_not_depend_on_its_batch(kind: str, places: list[int]) -> None:
    sequences, expected = known(kind)
    found = run_session(session(kind), [sequences[i] for i in places], exported(kind).encoder.format.pad)
    assert np.abs(found - expected[places]).max() <= PARITY_TOLERANCE


_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@cache
def adapted(kind: str, seed: int) -> tuple[Runs, Export]:
    """The kind's session with an adapter, and the torch model that it stands for."""
    trunk = exported(kind)
    delta = trained_delta(trunk.model, seed=seed)
    # A session maps the file, so that no other kind and no other process may write to it.
    path = trunk.directory.parent / f"{kind}-{seed}-{os.getpid()}.onnx_adapter"
    write_adapter(delta, path)
    return open_session(trunk.onnx, path), replace(trunk, model=delta)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@settings(max_examples=25)
@given(places=st.lists(st.integers(0, TEXTS - 1), min_size=1, max_size=8), seed=st.integers(0, 4))
def test_an_adapter_scores_as_the_torch_model_with_it(kind: str, places: list[int], seed: int) -> None:
    run, delta = adapted(kind, seed)
    sequences = [known(kind)[0][i] for i in places]
    pad = delta.encoder.format.pad
    expected = alone(delta, sequences)
    assert np.abs(run_session(run, sequences, pad) - expected).max() <= PARITY_TOLERANCE
    if delta.model.is_decoder:
        groups = by_prompt(sequences)
        found = run_trees(run, [[sequences[i] for i in group] for group in groups], pad)
        assert np.abs(found - expected[[i for group in groups for i in group]]).max() <= PARITY_TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@settings(max_examples=25)
@given(shapes=st.lists(st.tuples(st.integers(0, 60), _lengths), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_a_score_in_a_tree_row_is_that_of_the_sequence_alone(
    kind: str, shapes: list[tuple[int, list[int]]], seed: int
) -> None:
    chance = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [chance.randrange(4, 260) for _ in range(length)]

    prompts = [(draw(prompt), responses) for prompt, responses in shapes]
    groups = [[Encoded(p + draw(r), None, False, r, len(p)) for r in responses] for p, responses in prompts]
    found = run_trees(session(kind), groups, exported(kind).encoder.format.pad)
    expected = alone(exported(kind), [sequence for group in groups for sequence in group])
    assert np.abs(found - expected).max() <= PARITY_TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "llama"])
@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(_text, _text), min_size=1, max_size=6))
def test_any_text_scores_as_in_torch(kind: str, pairs: list[tuple[str, str]]) -> None:
    export = exported(kind)
    encoder = export.encoder
    sequences = [encoder.pair((Turn("user", p),), r) for p, r in pairs]
    found = run_session(session(kind), sequences, encoder.format.pad)
    assert np.abs(found - alone(export, sequences)).max() <= PARITY_TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "llama"])
@settings(max_examples=25)
@given(places=st.lists(st.integers(0, TEXTS - 1), min_size=1, max_size=24), budget=st.integers(1, 4_000))
def test_training_micro_batches_keep_order_and_logits(kind: str, places: list[int], budget: int) -> None:
    sequences, expected = known(kind)
    with torch.inference_mode():
        found = logits_of(
            exported(kind).model, [sequences[i] for i in places], exported(kind).encoder.format.pad, budget
        )
    assert np.abs(found.numpy() - expected[places]).max() <= PARITY_TOLERANCE
