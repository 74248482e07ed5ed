"""What an answer is expected to tell the reward model, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop_server.labelling.expect import expected_information


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_an_even_pair_of_one_head_tells_a_quarter_and_a_sure_one_nothing() -> None:
    assert expected_information(np.array([[1.0], [1.0]], np.float32)) == pytest.approx(0.25)
    assert expected_information(np.array([[50.0], [0.0]], np.float32)) == pytest.approx(0.0, abs=1e-12)
    assert expected_information(np.array([[logit(0.8)], [0.0]], np.float32)) == pytest.approx(0.8 * 0.2, abs=1e-6)


def test_heads_that_disagree_add_the_variance_of_their_probabilities() -> None:
    heads = np.array([[logit(0.9), logit(0.5)], [0.0, 0.0]], np.float32)
    assert expected_information(heads) == pytest.approx(0.7 * 0.3 + 0.2**2, abs=1e-6)


def test_the_most_informative_pair_of_a_group_counts() -> None:
    heads = np.array([[9.0], [0.1], [0.0]], np.float32)
    p = 1 / (1 + math.exp(-0.1))
    assert expected_information(heads) == pytest.approx(p * (1 - p), abs=1e-6)


def test_a_single_candidate_is_compared_with_an_answer_of_score_0() -> None:
    assert expected_information(np.array([[logit(0.8)]], np.float32)) == pytest.approx(0.16, abs=1e-6)
