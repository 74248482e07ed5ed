"""Requests that join a batch that runs, and leave it: each says what it says alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny_policies import FAMILIES, tiny_policy
from transformers import GenerationConfig

from rewardloop_sampling.decoding import fixed_layers
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.running_batch import RunningBatch, sample
from rewardloop_sampling.sampling import SampleRequest, Task

PAD, END = 0, 1
RECURRENT = ("qwen3_next", "lfm2", "qwen3_5_text", "mamba2", "mamba")
JOINED = [family for family in FAMILIES if family not in (*RECURRENT, "rwkv")]
# Prompts that are shorter and longer than what runs when they come.
LATE: Mapping[int, Sequence[SampleRequest]] = {
    0: [SampleRequest([5, 6, 7], 2, 0.8, 0.9, 3, 20), SampleRequest([9], 1, 0.0, 1.0, 0, 4)],
    3: [SampleRequest([8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], 3, 1.0, 1.0, 4, 9)],
    5: [SampleRequest([21], 2, 1.3, 0.5, 5, 3), SampleRequest([22, 23], 1, 0.0, 1.0, 6, 12)],
    14: [SampleRequest(list(range(30, 70)), 1, 1.0, 1.0, 7, 2)],
}


def precise(family: str) -> Any:
    """In float64: other batch shapes then round too little to reach the boundary between two tokens.

    Two kinds of models have no float64: experts, and attention in Python, which takes its softmax in float32.
    """
    model = tiny_policy(family)
    is_single = model.config._attn_implementation == "eager" or hasattr(model.config, "num_experts_per_tok")
    return model if is_single else model.double()


def run(batch: RunningBatch, arrivals: Mapping[int, Sequence[SampleRequest]]) -> tuple[list[Task], dict[Task, int]]:
    """Let the requests join before the steps that the keys say. Returns them, and after which step each was done."""
    tasks: list[Task] = []
    ended: dict[Task, int] = {}
    step = 0
    while step <= max(arrivals) or batch.tasks:
        if step in arrivals:
            joining = [Task(request) for request in arrivals[step]]
            batch.join(joining)
            tasks += joining
        ended |= dict.fromkeys(batch.step(), step)
        step += 1
    return tasks, ended


def check_alone(model: Any, tasks: Sequence[Task], rules: GenerationRules | None = None) -> None:
    for task in tasks:
        (alone,) = sample(model, [task.request], end_ids=[END], pad_id=PAD, rules=rules)
        assert [(s.ids, s.finish) for s in task.sampled] == [(s.ids, s.finish) for s in alone]
        for ours, its in zip(task.sampled, alone, strict=True):
            assert ours.logprobs == pytest.approx(its.logprobs, abs=1e-5 if model.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("family", JOINED)
def test_requests_that_join_say_what_they_say_alone(family: str) -> None:
    model = precise(family)
    assert not fixed_layers(model.config)
    tasks, _ = run(RunningBatch(model, end_ids=[END], pad_id=PAD), LATE)
    assert len(tasks) == 6
    assert sum(len(sampled.ids) for task in tasks for sampled in task.sampled) > 60
    check_alone(model, tasks)


def test_rules_of_the_checkpoint_hold_for_requests_that_join() -> None:
    model = precise("llama")
    model.generation_config = GenerationConfig(
        repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=4, begin_suppress_tokens=[8], top_k=50
    )
    rules = GenerationRules.of(model, [END])
    tasks, _ = run(RunningBatch(model, end_ids=[END], pad_id=PAD, rules=rules), LATE)
    check_alone(model, tasks, rules)
    plain, _ = run(RunningBatch(model, end_ids=[END], pad_id=PAD), LATE)
    assert [task.sampled for task in plain] != [task.sampled for task in tasks]


def test_a_short_request_that_joins_a_long_one_is_done_first() -> None:
    long, short = SampleRequest([3, 4], max_new_tokens=60), SampleRequest([5, 6, 7], max_new_tokens=5)
    (first, second), ended = run(RunningBatch(precise("llama"), end_ids=[], pad_id=PAD), {0: [long], 10: [short]})
    assert (ended[second], ended[first]) == (14, 59)


def test_candidates_that_end_take_no_room_once_others_join() -> None:
    model = precise("llama")
    shapes: list[tuple[int, int]] = []

    def note(_: Any, __: Any, given: Mapping[str, Any]) -> None:
        cache = next(given[name] for name in ("cache", "past_key_values") if name in given)
        shapes.append((given["input_ids"].shape[0], cache.get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    short = SampleRequest([4], max_new_tokens=4)
    arrivals = {
        0: [SampleRequest(list(range(3, 40)), 4, max_new_tokens=3), SampleRequest([4], max_new_tokens=30)],
        6: [short, short],
        12: [short],
    }
    run(RunningBatch(model, end_ids=[], pad_id=PAD), arrivals)
    # Prefills have an empty cache. After the long prompt has left, the longest row has one token and what it said.
    assert [shape for shape in shapes if not shape[1]] == [(2, 0), (2, 0), (1, 0)]
    steps = [shape for shape in shapes if shape[1]]
    assert steps[:4] == [(5, 37), (5, 38), (1, 3), (1, 4)]
    assert steps[6:9] == [(3, 7), (3, 8), (3, 9)]
    assert steps[9] == (1, 10)


def test_no_numbers_in_one_request_end_it_alone() -> None:
    model = precise("llama")
    requests = [
        SampleRequest([3, 4], 2, seed=1, max_new_tokens=12),
        SampleRequest([5, 7], 2, seed=2, max_new_tokens=12),
    ]
    (expected,) = sample(model, requests[:1], end_ids=[7], pad_id=PAD)
    model.get_input_embeddings().weight.data[7] = float("nan")
    good, bad = (Task(request) for request in requests)
    batch = RunningBatch(model, end_ids=[7], pad_id=PAD)
    batch.join([good, bad])
    assert batch.step() == [bad]
    assert isinstance(bad.error, FloatingPointError)
    while batch.tasks:
        batch.step()
    assert good.error is None
    assert [s.ids for s in good.sampled] == [s.ids for s in expected]


def test_prompts_that_cannot_be_read_leave_what_runs_as_it_is() -> None:
    model = precise("llama")
    batch, task = RunningBatch(model, end_ids=[END], pad_id=PAD), Task(LATE[0][0])
    batch.join([task])
    batch.step()
    with pytest.raises(IndexError):
        batch.join([Task(SampleRequest([10**6]))])
    with pytest.raises(ValueError, match="a request needs"):
        batch.join([Task(SampleRequest([]))])
    batch.finish()
    check_alone(model, [task])


def test_an_abandoned_request_leaves_at_once() -> None:
    abandoned: set[int] = set()
    requests = [SampleRequest([3], 2, seed=1, max_new_tokens=20), SampleRequest([4], 2, seed=2, max_new_tokens=20)]
    tasks = [Task(request, partial(abandoned.__contains__, i)) for i, request in enumerate(requests)]
    batch = RunningBatch(precise("llama"), end_ids=[], pad_id=PAD)
    batch.join(tasks)
    for _ in range(5):
        assert batch.step() == []
    abandoned.add(0)
    assert batch.step() == [tasks[0]]
    assert batch.rows == 2
    assert [len(s.ids) for s in tasks[0].sampled] == [6, 6]


@pytest.mark.parametrize("family", RECURRENT)
def test_nothing_joins_a_model_with_recurrent_layers_until_it_is_done(family: str) -> None:
    model = tiny_policy(family)
    assert fixed_layers(model.config)
    batch = RunningBatch(model, end_ids=[], pad_id=PAD)
    assert batch.can_join
    for _ in range(2):
        batch.join([Task(SampleRequest([3, 4, 5], 2, max_new_tokens=3)), Task(SampleRequest([6], max_new_tokens=2))])
        batch.step()
        assert not batch.can_join
        with pytest.raises(RuntimeError, match="begin together"):
            batch.join([Task(SampleRequest([3]))])
        batch.finish()
        assert batch.can_join


@pytest.mark.parametrize("family", ["gpt2", "mpt", "llama"])
def test_a_candidate_that_has_ended_never_leaves_the_models_positions(family: str) -> None:
    model = precise(family)
    long = SampleRequest(list(range(3, 159)), max_new_tokens=4)  # all 160 positions
    others = [SampleRequest([3 + i], seed=i, max_new_tokens=40) for i in range(7)]
    together = sample(model, [long, *others], end_ids=[], pad_id=PAD)
    for request, group in zip((long, *others), together, strict=True):
        assert sample(model, [request], end_ids=[], pad_id=PAD)[0][0].ids == group[0].ids


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 130])
def test_random_numbers_last_for_long_answers(tokens: int) -> None:
    """The last token of a longer answer is drawn as in one that is cut after it."""
    model = precise("llama")
    torch.manual_seed(0)
    ((long,),) = sample(model, [SampleRequest([3], seed=9, max_new_tokens=131)], end_ids=[], pad_id=PAD)
    ((cut,),) = sample(model, [SampleRequest([3], seed=9, max_new_tokens=tokens)], end_ids=[], pad_id=PAD)
    assert cut.ids == long.ids[:tokens]
