"""A version whose texts can have an id or a position that its graph does not have is refused when it is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.adapter_graphs import HEADS, TOKENS, write_decoder
from support.reward_bases import exported
from support.reward_graphs import word_tokenizer
from tokenizers import AddedToken, Tokenizer

from rewardloop.formats.affix_layout import Affix, TextFormat
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.graph_tables import Tables, read_tables
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics

POSITIONS = 40
FORMAT = TextFormat.for_encoder(word_tokenizer())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def write_encoder(path: Path, *, places: str = "embeddings.position_embeddings.weight") -> None:
    """Embeddings of tokens and of positions, which are counted from 2 on, as RoBERTa's are."""
    draw = np.random.default_rng(0)
    arrays = {
        "embeddings.word_embeddings.weight": draw.normal(size=(TOKENS, HEADS)).astype(np.float32),
        places: draw.normal(size=(POSITIONS, HEADS)).astype(np.float32),
        "columns": np.array(1, dtype=np.int64),
        "rows": np.array([1], dtype=np.int64),
        "before": np.array(1, dtype=np.int64),
    }
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "columns"], ["counted"]),
        helper.make_node("Mul", ["counted", "attention_mask"], ["real"]),
        helper.make_node("Add", ["real", "before"], ["position"]),
        helper.make_node("Gather", ["embeddings.word_embeddings.weight", "input_ids"], ["embedded"]),
        helper.make_node("Gather", [places, "position"], ["placed"]),
        helper.make_node("Add", ["embedded", "placed"], ["states"]),
        helper.make_node("ReduceSum", ["states", "rows"], ["logits"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")]
    outputs = [value("logits", TensorProto.FLOAT, ["b", HEADS])]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def load(
    store: ModelStore,
    *,
    max_length: int = 16,
    text_format: TextFormat = FORMAT,
    tokenizer: Tokenizer | None = None,
    **graph: object,
) -> None:
    def write(directory: Path) -> None:
        write_encoder(directory / "model.onnx", **graph)  # type: ignore[arg-type]
        (tokenizer or word_tokenizer()).save(str(directory / "tokenizer.json"))

    about = Manifest(model="reward", text_format=text_format.to_json(), max_length=max_length, heads=HEADS)
    publish_and_load(store, about, write)


def publish_and_load(store: ModelStore, about: Manifest, write: Callable[[Path], None]) -> None:
    manifest = store.publish(about, write)
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    try:
        pool.load(manifest, store.fetch("reward", manifest.version)).close()
    finally:
        assert pool.sessions == 0


def test_version_within_its_tables_is_loaded_to_its_last_position(store) -> None:
    load(store, max_length=POSITIONS - 2)


@pytest.mark.parametrize("special", [True, False])
def test_added_token_beyond_the_embedding_is_refused(store, special: bool) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("<more>", special=special)])
    with pytest.raises(NotLoadable, match=f"ids up to {TOKENS}, but the graph's embedding has {TOKENS} rows"):
        load(store, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "text_format",
    [
        replace(FORMAT, pad=TOKENS),
        replace(FORMAT, opening=(1, TOKENS)),
        replace(FORMAT, assistant=Affix((TOKENS,), ())),
        replace(FORMAT, response=Affix((), (TOKENS,))),
    ],
)
def test_text_format_beyond_the_embedding_is_refused(store, text_format: TextFormat) -> None:
    with pytest.raises(NotLoadable, match=f"ids up to {TOKENS}"):
        load(store, text_format=text_format)


@pytest.mark.parametrize("pad", [-1, "0"])
def test_text_format_without_proper_ids_is_refused(store, pad: object) -> None:
    with pytest.raises(NotLoadable):
        load(store, text_format=replace(FORMAT, pad=pad) if pad == -1 else replace(FORMAT, opening=(pad,)))  # type: ignore[arg-type]


def test_more_tokens_than_positions_are_refused(store) -> None:
    with pytest.raises(NotLoadable, match=f"up to {POSITIONS + 1} tokens, but the graph has {POSITIONS} positions"):
        load(store, max_length=POSITIONS + 1)


@pytest.mark.parametrize("places", ["embeddings.position_embeddings.weight", "nameless"])
def test_positions_that_start_above_0_are_refused_by_a_run_of_the_greatest_length(store, places: str) -> None:
    length = POSITIONS - 1
    with pytest.raises(NotLoadable, match=f"does not run on 1 x {length} tokens of id {TOKENS - 1}"):
        load(store, max_length=length, places=places)


def test_vocabulary_with_holes_is_searched_to_its_highest_id(store) -> None:
    data = word_tokenizer().to_str().replace('"theta":11', f'"theta":{TOKENS + 70}')
    with pytest.raises(NotLoadable, match=f"ids up to {TOKENS + 70}"):
        load(store, tokenizer=Tokenizer.from_str(data))


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 256), ("roberta", 256), ("llama", None), ("qwen2", None), ("gpt2", 256)]
)
def test_tables_of_exported_graphs_are_read(kind: str, positions: int | None) -> None:
    assert read_tables(exported(kind).onnx) == Tables(tokens=260, positions=positions)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 256), ("roberta", 255), ("gpt2", 256)])
def test_exported_graph_is_loaded_with_as_many_tokens_as_it_has_positions_and_no_more(store, kind, longest) -> None:
    load_export(store, kind, longest)
    with pytest.raises(NotLoadable, match=f"does not run on 1 x {longest + 1} tokens|up to {longest + 1} tokens"):
        load_export(store, kind, longest + 1)


def load_export(store: ModelStore, kind: str, max_length: int) -> None:
    export = exported(kind)

    def write(directory: Path) -> None:
        shutil.copyfile(export.onnx, directory / "model.onnx")
        export.encoder.tokenizer.save(str(directory / "tokenizer.json"))

    text_format = export.encoder.format.to_json()
    publish_and_load(store, Manifest(model="reward", text_format=text_format, max_length=max_length, heads=3), write)


def test_tables_of_a_decoder_are_read(tmp_path: Path) -> None:
    write_decoder(tmp_path / "model.onnx")
    assert read_tables(tmp_path / "model.onnx") == Tables(tokens=TOKENS, positions=512)


def test_table_is_found_behind_a_cast_and_a_dequantization(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32),
        helper.make_node("DequantizeLinear", ["words", "scale"], ["floats"]),
        helper.make_node("Gather", ["floats", "ids"], ["embedded"]),
        helper.make_node("Gather", ["floats", "rows"], ["unrelated"]),
    ]
    value = helper.make_tensor_value_info
    initializers = [
        numpy_helper.from_array(np.zeros((7, 3), dtype=np.int8), "words"),
        numpy_helper.from_array(np.array(1, dtype=np.float32), "scale"),
    ]
    inputs = [value(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "rows")]
    outputs = [value(name, TensorProto.FLOAT, ["b", "s", 3]) for name in ("embedded", "unrelated")]
    graph = helper.make_graph(nodes, "words", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert read_tables(tmp_path / "model.onnx") == Tables(tokens=7, positions=None)
