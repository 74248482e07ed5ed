"""What the gate is shown beside answers: how likely a policy finds the texts that people approved."""

from __future__ import annotations

import math

import pytest
import torch
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair
from rewardloop_trainer.evaluation.answers import fluency

PROMPT = (Turn("user", "Hi"),)
APPROVED: list[Record] = [
    Pair(PROMPT, "good", "bad"),
    RankedList(PROMPT, ("best", "middle", "worst")),
    Labelled(PROMPT, "liked", 1.0),
]


def test_texts_that_people_approved_are_weighed_by_their_tokens() -> None:
    """A policy whose logits are all equal gives each of 258 tokens log 258 nats, whatever the text."""
    encoder, live = byte_encoder(), small_llama(1)
    flat = small_llama(1)
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    found = fluency(flat, live, encoder, APPROVED, most=10, micro_batch_tokens=512)
    assert found is not None
    assert found.candidate == pytest.approx(math.log(258), abs=1e-4)
    assert found.perplexity_ratio == pytest.approx(258 / math.exp(found.live), rel=1e-4)
    same = fluency(live, live, encoder, APPROVED, most=10, micro_batch_tokens=512)
    assert same is not None
    assert same.perplexity_ratio == 1.0
    assert same.live == found.live


def test_what_nobody_approved_does_not_count() -> None:
    encoder, live = byte_encoder(), small_llama(1)
    others: list[Record] = [TiedPair(PROMPT, "a", "b"), Labelled(PROMPT, "disliked", 0.0), Labelled(PROMPT, "so", 0.5)]
    assert fluency(live, live, encoder, others, most=10, micro_batch_tokens=512) is None
    chosen = fluency(live, live, encoder, APPROVED, most=10, micro_batch_tokens=512)
    assert fluency(live, live, encoder, [*others, *APPROVED], most=10, micro_batch_tokens=512) == chosen
    assert fluency(live, live, encoder, [Pair(PROMPT, "x" * 200, "bad")], most=10, micro_batch_tokens=512) is None
