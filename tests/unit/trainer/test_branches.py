"""A decoder's graph that takes the branch of each token scores as it does with the mask of these branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from support.adapter_graphs import write_decoder

from rewardloop.formats.graphs.inputs import GraphInputs, decoder_rows, mask_of, tree_rows, with_mask
from rewardloop.formats.text import Encoded
from rewardloop_trainer.export.attention.branches import take_branches, without_trees

PROMPT = [4, 5, 6, 7]
GROUP = [Encoded([*PROMPT, *response], None, False, 1, 4) for response in ([8, 9], [], [10, 4, 5])]
PLAIN = decoder_rows(GROUP, 8, 0)
TREES = tree_rows([GROUP, GROUP[:1]], 11, 0)
SHARED = tree_rows([GROUP], 11, 0, shares_prompt=True)
RUNS = pytest.mark.parametrize("inputs", [PLAIN, TREES, SHARED], ids=["plain rows", "tree rows", "shared prompt"])


@pytest.fixture
def masked(tmp_path: Path) -> onnx.ModelProto:
    write_decoder(tmp_path / "model.onnx")
    return onnx.load(tmp_path / "model.onnx")


def logits(graph: onnx.ModelProto, inputs: GraphInputs) -> Any:
    onnx.checker.check_model(graph, full_check=True)
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(["logits"], inputs)[
        0
    ]


def branched(masked: onnx.ModelProto, reach: int | None = None) -> onnx.ModelProto:
    graph = onnx.ModelProto()
    graph.CopyFrom(masked)
    take_branches(graph, reach)
    return graph


def test_a_token_sees_the_prompt_and_its_own_branch_before_it() -> None:
    branches = np.array([[0, 0, 1, 2, 2, 3]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(mask_of(branches, 6)[0, 0], np.array(expected, dtype=bool))


@RUNS
@pytest.mark.parametrize("reach", [None, 8, 3])
def test_branches_give_the_scores_of_their_mask(
    masked: onnx.ModelProto, inputs: GraphInputs, reach: int | None
) -> None:
    np.testing.assert_allclose(logits(branched(masked, reach), inputs), logits(masked, with_mask(inputs)), atol=1e-6)


def test_the_attention_of_plain_rows_is_causal_without_a_mask(masked: onnx.ModelProto) -> None:
    plain = without_trees(branched(masked))
    (attention,) = (node for node in plain.graph.node if node.op_type == "Attention")
    assert list(attention.input) == ["q", "k", "v"]
    assert {a.name: a.i for a in attention.attribute}["is_causal"] == 1
    assert not any(node.op_type == "If" for node in plain.graph.node)
    np.testing.assert_allclose(logits(plain, PLAIN), logits(masked, with_mask(PLAIN)), atol=1e-6)


def test_a_row_over_its_prompts_keys_and_values_needs_no_mask(masked: onnx.ModelProto) -> None:
    """Branches are what the mask is made of; here they say that every token is one of the prompt."""
    without_branches = SHARED | {"branches": np.zeros_like(SHARED["branches"])}
    expected = logits(masked, with_mask(SHARED))
    np.testing.assert_allclose(logits(branched(masked), without_branches), expected, atol=1e-5)
    assert np.abs(logits(masked, with_mask(without_branches)) - expected).max() > 1e-2
    # A window that is narrower than a response with its prompt needs one.
    assert np.abs(logits(branched(masked, reach=6), without_branches) - expected).max() > 1e-2


def test_the_responses_of_a_row_say_where_their_tokens_are() -> None:
    columns, places = SHARED["response_columns"], SHARED["response_places"]
    assert columns.tolist() == [[4, 5, 6], [6, 7, 8], [6, 7, 8]]
    assert places.tolist() == [0, 1, 6, 7, 8, 0, 0]
    np.testing.assert_array_equal(columns.reshape(-1)[places[:5]], np.arange(4, 9))


@RUNS
def test_what_else_reads_the_mask_gets_one_in_any_run(masked: onnx.ModelProto, inputs: GraphInputs) -> None:
    """Here each token's number of tokens that it sees is added to its state."""
    nodes = masked.graph.node
    states = next(node for node in nodes if node.output[0] == "states")
    states.output[0] = "attended"
    added = [
        helper.make_node("Cast", ["mask"], ["seen_or_not"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["seen_or_not", "last_axis"], ["counts"], keepdims=1),
        helper.make_node("Squeeze", ["counts", "heads_axis"], ["counted"]),
        helper.make_node("Add", ["attended", "counted"], ["states"]),
    ]
    at = list(nodes).index(states) + 1
    for node in reversed(added):
        nodes.insert(at, node)
    for name, axis in (("last_axis", 3), ("heads_axis", 1)):
        masked.graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis], dtype=np.int64), name))
    np.testing.assert_allclose(logits(branched(masked), inputs), logits(masked, with_mask(inputs)), atol=1e-5)
