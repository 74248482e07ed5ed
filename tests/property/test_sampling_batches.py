"""What a candidate says does not depend on what it is batched with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rewardloop_sampling.running_batch import RunningBatch, sample
from rewardloop_sampling.sampling import SampleRequest, Task

VOCABULARY = 19
PAD, END = 0, 1


@cache
def tiny(kind: str) -> Any:
    """In float64: other batch shapes then round too little to reach the boundary between two tokens."""
    torch.manual_seed(11)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5
        )
        return GPT2LMHeadModel(config).double().eval()
    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(llama).double().eval()


requests = st.builds(
    SampleRequest,
    prompt=st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=9),
    candidates=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    max_new_tokens=st.integers(1, 10),
)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@settings(max_examples=25)
@given(batch=st.lists(requests, min_size=2, max_size=6))
def test_a_request_says_the_same_alone_and_in_any_batch(kind: str, batch: list[SampleRequest]) -> None:
    together = sample(tiny(kind), batch, end_ids=[END], pad_id=PAD)
    assert [len(group) for group in together] == [request.candidates for request in batch]
    for request, group in zip(batch, together, strict=True):
        (alone,) = sample(tiny(kind), [request], end_ids=[END], pad_id=PAD)
        assert [(s.ids, s.finish) for s in alone] == [(s.ids, s.finish) for s in group]
        for first, second in zip(alone, group, strict=True):
            assert first.logprobs == pytest.approx(second.logprobs, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@settings(max_examples=25)
@given(arrivals=st.lists(st.tuples(st.integers(0, 12), requests), min_size=2, max_size=6))
def test_a_request_says_the_same_whenever_it_joins(kind: str, arrivals: list[tuple[int, SampleRequest]]) -> None:
    batch, tasks = RunningBatch(tiny(kind), end_ids=[END], pad_id=PAD), []
    for step in range(24):
        joining = [Task(request) for at, request in arrivals if at == step]
        batch.join(joining)
        tasks += joining
        batch.step()
    assert not batch.tasks
    assert len(tasks) == len(arrivals)
    for task in tasks:
        (alone,) = sample(tiny(kind), [task.request], end_ids=[END], pad_id=PAD)
        assert [(s.ids, s.finish) for s in alone] == [(s.ids, s.finish) for s in task.sampled]
        for first, second in zip(alone, task.sampled, strict=True):
            assert first.logprobs == pytest.approx(second.logprobs, abs=1e-5)


@settings(max_examples=15)
@given(request=requests, fewer=st.integers(1, 3))
def test_a_candidate_does_not_depend_on_how_many_are_asked_for(request: SampleRequest, fewer: int) -> None:
    def ask(count: int) -> list[list[int]]:
        asked = SampleRequest(
            request.prompt, count, request.temperature, request.top_p, request.seed, request.max_new_tokens
        )
        return [s.ids for s in sample(tiny("llama"), [asked], end_ids=[END], pad_id=PAD)[0]]

    assert ask(4)[:fewer] == ask(fewer)
