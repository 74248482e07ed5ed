"""Reward versions whose right score is known without a model: the logit is the sum of the pair's token ids.

A real ONNX graph, run by the real engine; a score that depended on padding, order or neighbours would differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Calibration, DataRange, Manifest, ModelStore

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
VOCABULARY = {name: i for i, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}


def word_tokenizer() -> Tokenizer:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    return tokenizer


def write_sum_graph(
    path: Path,
    *,
    factor: float = 1.0,
    cost: int = 0,
    fails_on: str | None = None,
    nan_on: str | None = None,
    loops_on: str | None = None,
    hangs_on: str | None = None,
) -> None:
    """Two heads: ``factor * sum(ids)`` and twice that. ``cost`` adds that many wasted matrix products.

    A run that holds the word ``fails_on`` fails as a whole, with an index beyond a table. A row that holds the word
    ``nan_on`` gets logits that are not numbers. A run that holds the word ``loops_on`` goes on until it is stopped, and
    one that holds ``hangs_on`` cannot be stopped: its loop has no node at which ONNX Runtime would look at the flag.
    """
    sound = "sound" if fails_on or nan_on else "whole"
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["real"]),
        helper.make_node("Cast", ["real"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axis"], ["total"], keepdims=1),
        helper.make_node("MatMul", ["total", "factors"], ["heads_0"]),
    ]
    initializers = [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        numpy_helper.from_array(np.array([[factor, 2 * factor]], dtype=np.float32), "factors"),
        numpy_helper.from_array(np.zeros((512, 512), dtype=np.float32), "waste"),
        numpy_helper.from_array(np.zeros((2, 512), dtype=np.float32), "widen"),
        numpy_helper.from_array(np.zeros((512, 2), dtype=np.float32), "narrow"),
    ]
    nodes.append(helper.make_node("MatMul", ["heads_0", "widen"], ["wide_0"]))
    nodes += [helper.make_node("MatMul", [f"wide_{i}", "waste"], [f"wide_{i + 1}"]) for i in range(cost)]
    nodes += [
        helper.make_node("MatMul", [f"wide_{cost}", "narrow"], ["nothing"]),
        helper.make_node("Add", ["heads_0", "nothing"], [sound]),
    ]
    if fails_on or nan_on:
        more_nodes, more_initializers = faults(fails_on, nan_on, "whole")
        nodes += more_nodes
        initializers += more_initializers
    more_nodes, more_initializers = _endless("whole", loops_on, hangs_on)
    nodes += more_nodes
    initializers += more_initializers
    integers = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    graph = helper.make_graph(nodes, "sum", integers, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _endless(sound: str, loops_on: str | None, hangs_on: str | None) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and initializers that make ``logits`` of ``sound``, after a loop that does not end for each word."""
    value = helper.make_tensor_value_info
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    for word, has_nodes in ((loops_on, True), (hangs_on, False)):
        if word is None:
            continue
        inputs = [value("trip", TensorProto.INT64, []), value(f"{word}_on", TensorProto.BOOL, [])]
        inputs.append(value(f"{word}_at", TensorProto.FLOAT, None))
        names = [f"{word}_on", f"{word}_at"]
        body: list[NodeProto] = []
        if has_nodes:
            body = [helper.make_node("Identity", [name], [f"{name}_next"]) for name in names]
            names = [f"{name}_next" for name in names]
        outputs = [value(names[0], TensorProto.BOOL, []), value(names[1], TensorProto.FLOAT, None)]
        nodes += [
            helper.make_node("Equal", ["input_ids", f"{word}_id"], [f"{word}_here"]),
            helper.make_node("Cast", [f"{word}_here"], [f"{word}_count"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", [f"{word}_count"], [f"{word}_any"], keepdims=0),
            helper.make_node("Cast", [f"{word}_any"], [f"{word}_holds"], to=TensorProto.BOOL),
            helper.make_node(
                "Loop",
                ["", f"{word}_holds", sound],
                [f"{word}_passed"],
                body=helper.make_graph(body, "body", inputs, outputs),
            ),
        ]
        initializers.append(numpy_helper.from_array(np.array(VOCABULARY[word], dtype=np.int64), f"{word}_id"))
        sound = f"{word}_passed"
    return [*nodes, helper.make_node("Identity", [sound], ["logits"])], initializers


def faults(fails_on: str | None, nan_on: str | None, out: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and initializers that make ``out`` of ``sound``, and fail or give no number for the two words."""
    nodes = [
        # A table of one row, in which the word is looked up at 1 and all others at 0.
        helper.make_node("Equal", ["input_ids", "fatal"], ["is_fatal"]),
        helper.make_node("Cast", ["is_fatal"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["zero", "places"], ["zeros"]),
        # 0 / 0 for the word, and 0 / 1 for all others.
        helper.make_node("Equal", ["input_ids", "odd"], ["is_odd"]),
        helper.make_node("Not", ["is_odd"], ["is_even"]),
        helper.make_node("Cast", ["is_even"], ["divisors"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["zeros", "divisors"], ["faults"]),
        helper.make_node("ReduceSum", ["faults", "axis"], ["fault"], keepdims=1),
        helper.make_node("Add", ["sound", "fault"], [out]),
    ]
    ids = {None: -1, **VOCABULARY}
    initializers = [
        numpy_helper.from_array(np.array(ids[fails_on], dtype=np.int64), "fatal"),
        numpy_helper.from_array(np.array(ids[nan_on], dtype=np.int64), "odd"),
        numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"),
    ]
    return nodes, initializers


def publish_sum_version(
    store: ModelStore,
    *,
    factor: float = 1.0,
    cost: int = 0,
    fails_on: str | None = None,
    nan_on: str | None = None,
    loops_on: str | None = None,
    hangs_on: str | None = None,
    max_length: int = 64,
    calibration: Calibration | None = None,
    arrivals: tuple[float, ...] = (),
    model: str = "reward",
) -> Manifest:
    """Publish one such version of a reward model."""
    tokenizer = word_tokenizer()

    def write(directory: Path) -> None:
        write_sum_graph(
            directory / "model.onnx",
            factor=factor,
            cost=cost,
            fails_on=fails_on,
            nan_on=nan_on,
            loops_on=loops_on,
            hangs_on=hangs_on,
        )
        tokenizer.save(str(directory / "tokenizer.json"))

    data = DataRange("1-0", "2-0", len(arrivals), arrivals) if arrivals else None
    manifest = Manifest(
        model=model,
        calibration=calibration,
        text_format=TextFormat.for_encoder(tokenizer).to_json(),
        max_length=max_length,
        heads=2,
        data=data,
    )
    return store.publish(manifest, write)


def expected_logit(prompt: str, response: str, factor: float = 1.0) -> float:
    """Mean over the two heads for a pair that fits."""
    ids = [VOCABULARY.get(w, VOCABULARY["[UNK]"]) for w in (*prompt.split(), *response.split())]
    return 1.5 * factor * (sum(ids) + VOCABULARY["[CLS]"] + 2 * VOCABULARY["[SEP]"])
