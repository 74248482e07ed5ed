"""The rules of a generation config: the distribution that is sampled from, and what is not supported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from rewardloop_sampling.drawing import RowSettings, next_tokens
from rewardloop_sampling.generation_rules import GenerationRules, ProcessedRows, UnsupportedGeneration

_warpers: Any = logits_process


class Model:
    def __init__(self, **fields: Any) -> None:
        self.generation_config = GenerationConfig(**fields)


def rules(*ends: int, **fields: Any) -> GenerationRules:
    return GenerationRules.of(Model(**fields), ends)


@pytest.mark.parametrize(
    ("fields", "warpers"),
    [
        ({"top_k": 5}, [_warpers.TemperatureLogitsWarper(0.7), _warpers.TopKLogitsWarper(5), "top_p"]),
        ({"min_p": 0.2}, [_warpers.TemperatureLogitsWarper(0.7), "top_p", _warpers.MinPLogitsWarper(0.2)]),
        ({"typical_p": 0.6}, [_warpers.TemperatureLogitsWarper(0.7), "top_p", _warpers.TypicalLogitsWarper(0.6)]),
        (
            {"top_k": 9, "min_p": 0.05, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
            [
                _warpers.TemperatureLogitsWarper(0.7),
                _warpers.TopKLogitsWarper(9),
                "top_p",
                _warpers.MinPLogitsWarper(0.05),
                _warpers.EpsilonLogitsWarper(0.02),
                _warpers.EtaLogitsWarper(0.05),
            ],
        ),
    ],
)
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_samples_have_the_distribution_of_transformers(fields: Any, warpers: list[Any], top_p: float) -> None:
    torch.manual_seed(4)
    logits = torch.randn(1, 23) * 2
    nucleus = [_warpers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain = LogitsProcessorList([w for each in warpers for w in (nucleus if each == "top_p" else [each])])
    expected = chain(torch.zeros(1, 0, dtype=torch.long), logits).softmax(-1)[0]
    draws = 2000
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    rows = logits.expand(draws, -1)
    settings = RowSettings.of([0.7] * draws, [top_p] * draws, rows.device)
    ids, logprobs = next_tokens(rows, settings, uniform, rules(**fields))
    shares = torch.bincount(ids, minlength=23) / draws
    torch.testing.assert_close(shares, expected, atol=1 / draws, rtol=0)
    torch.testing.assert_close(logprobs.exp(), expected[ids].double(), atol=1e-5, rtol=0)


def test_greedy_rows_ignore_the_cuts_of_the_distribution() -> None:
    ids, logprobs = next_tokens(
        torch.tensor([[1.0, 3.0, 2.0]]),
        RowSettings.of([0.0], [1.0], torch.device("cpu")),
        torch.zeros(1, dtype=torch.float64),
        rules(typical_p=0.2),
    )
    assert (int(ids[0]), float(logprobs[0])) == (1, 0.0)


def test_a_penalty_does_not_see_padding_or_other_rows() -> None:
    penalty = rules(repetition_penalty=2.0)
    rows = ProcessedRows(penalty, [[3], [1, 2, 4], [4]], torch.device("cpu"))
    logits = torch.ones(3, 6)
    assert (rows.scores(logits) < 1).nonzero().tolist() == [[0, 3], [1, 1], [1, 2], [1, 4], [2, 4]]
    rows.append(torch.tensor([5, 5, 0]))
    rows.keep([0, 2])
    assert (rows.scores(logits[:2]) < 1).nonzero().tolist() == [[0, 3], [0, 5], [1, 0], [1, 4]]


@pytest.mark.parametrize("fields", [{"num_beams": 1}, {"top_k": 0}, {"temperature": 0.6, "do_sample": True}, {}])
def test_a_config_without_rules_leaves_logits_as_they_are(fields: Any) -> None:
    rows = ProcessedRows(rules(1, **fields), [[3], [1, 2]], torch.device("cpu"))
    logits = torch.randn(2, 6)
    assert rows.scores(logits) is logits


def test_every_unsupported_field_is_named() -> None:
    with pytest.raises(UnsupportedGeneration, match=r"num_beams=2, guidance_scale=1\.5"):
        rules(num_beams=2, guidance_scale=1.5)
