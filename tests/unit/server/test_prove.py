"""What a pooling server gives is compared with the proof, and a refusal says what it is likely to be."""

from __future__ import annotations

import numpy as np
import pytest

from rewardloop.formats.storing.pooling_file import PoolingFile, Probe
from rewardloop_server.pooling.prove import OtherLogits, check_proof


def proof(*logits: tuple[float, ...]) -> PoolingFile:
    return PoolingFile("judge", None, 0.01, tuple(Probe((("user", "a"),), "b", (1,), each) for each in logits))


ONE = proof((2.0,), (-3.0,), (0.25,))
TWO = proof((2.0, -1.0), (0.0, 3.0))


def test_outputs_within_the_tolerance_pass_with_their_difference() -> None:
    assert check_proof(ONE, np.array([[2.0], [-3.0], [0.255]]), "float32") == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("file", "found", "reason"),
    [
        (
            ONE,
            [[2.0], [-3.0], [0.27]],
            r"by up to 0\.02, above 0\.01, the tolerance of bfloat16: it serves other weights",
        ),
        (ONE, [[0.8808], [0.0474], [0.5622]], r"probabilities \(sigmoid\)"),
        (TWO, [[0.9526, 0.0474], [0.0474, 0.9526]], r"probabilities \(softmax\)"),
        (TWO, [[0.8808, 0.2689], [0.5, 0.9526]], r"probabilities \(sigmoid\)"),
        (ONE, [[2.0], [float("nan")], [0.25]], "up to inf"),
        (ONE, [[2.0, 1.0]] * 3, "gives 2 outputs for a text, and the classifier has 1"),
    ],
)
def test_other_outputs_are_refused_with_the_figures(file: PoolingFile, found: list[list[float]], reason: str) -> None:
    with pytest.raises(OtherLogits, match=reason):
        check_proof(file, np.array(found), "bfloat16")
