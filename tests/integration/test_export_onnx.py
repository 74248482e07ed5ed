"""A user's own ONNX graph is served with the scores of its Hugging Face class, or refused with the reason."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from safetensors.torch import load_file, save_file
from support.own_graphs import DECODERS, ENCODERS, OwnBase, own_base
from support.signals import choice

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import RefusedConversation, Turn
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.export.half_precision import to_float16
from rewardloop_trainer.export.weights import Graph, write_graph
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.reward_round import RewardRound
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile
from rewardloop_trainer.settings import TrainSettings

Capture: TypeAlias = pytest.CaptureFixture[str]
Edit: TypeAlias = Callable[[onnx.ModelProto], None]

_PROMPTS = ("Why is the sky blue?", "hello world", "Grüße, 日本語 🙂", "def f(x):\n    return x+1", "  outer  ")
_ANSWERS = ("Light scatters.", "no", "fine ok " * 12, "\nanswer")
CONVERSATIONS = [(prompt, answer) for prompt in _PROMPTS for answer in _ANSWERS]


def export(base: OwnBase, *flags: str) -> int:
    store = str(base.directory.parent / "store")
    return export_cli.main(["--onnx", str(base.graph), "--base", str(base.directory), "--store", store, *flags])


def manifest(base: OwnBase) -> Manifest:
    return ModelStore(base.directory.parent / "store").manifest("reward", 1)


def served(base: OwnBase) -> npt.NDArray[np.float32]:
    """The logits of the conversations, through the way that a server loads and runs a version."""
    store = ModelStore(base.directory.parent / "store")
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    model = pool.load(manifest(base), store.fetch("reward", 1))
    groups = model.encoder.groups([([Turn("user", prompt)], [answer]) for prompt, answer in CONVERSATIONS])
    rows = [row for group in groups if not isinstance(group, RefusedConversation) for row in group]
    logits, _ = model.run(rows)
    return logits


def of_class(base: OwnBase) -> npt.NDArray[np.float32]:
    """The logits of the conversations as transformers tokenizes and scores them, one by one."""
    found = []
    for prompt, answer in CONVERSATIONS:
        if base.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            inputs: Any = base.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        else:
            inputs = base.tokenizer(prompt, answer, return_tensors="pt")
        with torch.no_grad():
            found.append(base.model(**inputs).logits.numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_graph_is_served_with_the_scores_of_its_class(kind: str, tmp_path: Path) -> None:
    base = own_base(kind).copy(tmp_path)
    assert export(base) == 0
    expected = of_class(base)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(served(base), expected, atol=1e-5, rtol=0)
    assert manifest(base).heads == 1
    assert manifest(base).metrics["gate_parity"] < 1e-5
    assert manifest(base).notes["layout"].startswith("exact")


def test_a_graph_that_pools_before_an_end_that_is_padding_is_served_so(tmp_path: Path) -> None:
    base = own_base("llama", pad_is_eos=True).copy(tmp_path)
    assert export(base) == 0
    np.testing.assert_allclose(served(base), of_class(base), atol=1e-5, rtol=0)


def load(base: OwnBase) -> onnx.ModelProto:
    return onnx.load_model(str(base.graph))


def as_int32(proto: onnx.ModelProto) -> None:
    """Let the graph take 32-bit integers, as some exporters write."""
    graph = proto.graph
    for given in graph.input:
        for node in graph.node:
            node.input[:] = [f"{name}.64" if name == given.name else name for name in node.input]
        given.type.tensor_type.elem_type = TensorProto.INT32
        graph.node.insert(0, helper.make_node("Cast", [given.name], [f"{given.name}.64"], to=TensorProto.INT64))


def as_float16_output(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    for node in graph.node:
        node.output[:] = ["raw" if name == "logits" else name for name in node.output]
    graph.node.append(helper.make_node("Cast", ["raw"], ["logits"], to=TensorProto.FLOAT16))
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def with_another_name(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    graph.node.append(helper.make_node("Identity", ["logits"], ["score"]))
    graph.output[-1].name = "score"


def with_more_outputs(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    graph.node.append(helper.make_node("Neg", ["logits"], ["hidden_states"]))
    graph.output.insert(0, helper.make_tensor_value_info("hidden_states", TensorProto.FLOAT, None))


@pytest.mark.parametrize("edit", [as_int32, as_float16_output, with_another_name, with_more_outputs])
@pytest.mark.parametrize("kind", DECODERS)
def test_other_integers_outputs_and_names_are_served_too(kind: str, edit: Edit, tmp_path: Path) -> None:
    base = own_base(kind).copy(tmp_path)
    proto = load(base)
    edit(proto)
    onnx.save_model(proto, str(base.graph))
    is_half = edit is as_float16_output
    assert export(base, "--parity", "unverified" if is_half else "compared") == 0
    assert manifest(base).precision == ("float16" if is_half else "float32")
    tolerance = 1e-3 if is_half else 1e-5
    np.testing.assert_allclose(served(base), of_class(base), atol=tolerance, rtol=0)
    assert manifest(base).notes.get("outputs") == ("left out: hidden_states" if edit is with_more_outputs else None)


def test_weights_in_another_file_are_taken_along(tmp_path: Path) -> None:
    base = own_base("llama").copy(tmp_path)
    onnx.save_model(
        load(base), str(base.graph), save_as_external_data=True, location="model.onnx_data", size_threshold=64
    )
    assert export(base) == 0
    assert {"model.onnx", "model.onnx_data"} <= set(manifest(base).files)
    np.testing.assert_allclose(served(base), of_class(base), atol=1e-5, rtol=0)


def move_weights(base: OwnBase, location: str) -> None:
    proto = load(base)
    tensor = max(proto.graph.initializer, key=lambda each: len(each.raw_data))
    (base.directory / "weights").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    base.graph.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights", "weights/../../weights"])
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    move_weights(base, location)
    assert export(base) == 1
    assert "not the version's own" in capsys.readouterr().err


def test_a_link_to_weights_outside_the_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    move_weights(base, "linked")
    (base.directory / "weights").rename(tmp_path / "elsewhere")
    (base.directory / "linked").symlink_to(tmp_path / "elsewhere")
    assert export(base) == 1
    assert "links to weights outside its folder: linked" in capsys.readouterr().err


def test_missing_weights_and_a_file_that_is_no_graph_are_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    move_weights(base, "lost")
    assert export(base) == 1
    assert "its weights are not beside it: lost" in capsys.readouterr().err
    base.graph.write_bytes(b"no graph")
    assert export(base) == 1
    assert "is not an ONNX graph" in capsys.readouterr().err
    base.graph.unlink()
    assert export(base) == 1
    assert "there is no such file" in capsys.readouterr().err


def fixed_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def fixed_length(proto: onnx.ModelProto) -> None:
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 128


def with_a_cache(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, None))


def without_a_mask(proto: onnx.ModelProto) -> None:
    proto.graph.input[1].name = "mask"


def with_unnamed_outputs(proto: onnx.ModelProto) -> None:
    with_more_outputs(proto)
    with_another_name(proto)


def with_foreign_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Run", ["logits"], ["x"], domain="evil.example"))


def with_scores_of_tokens(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT))
    proto.graph.node.append(helper.make_node("Unsqueeze", ["tokens", "axis"], ["scores"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axis"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, None))


def smaller_embedding(proto: onnx.ModelProto) -> None:
    (table,) = (t for t in proto.graph.initializer if list(t.dims) == [800, 32])
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:300], table.name))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (fixed_batch, "the input input_ids has the shape [1, 'sequence_length']; export it again with dynamic axes"),
        (fixed_length, "the input attention_mask has the shape ['batch_size', 128]; export it again with dynamic axes"),
        (with_a_cache, "export it for the task of text classification"),
        (without_a_mask, "a server feeds input_ids, attention_mask"),
        (with_unnamed_outputs, "one output must be the scores, by the name of logits"),
        (with_foreign_operator, "operators that are not allowed: 'evil.example::Run'"),
        (with_scores_of_tokens, "it must give (rows, scores)"),
        (smaller_embedding, "the embedding has 300 rows"),
    ],
)
def test_a_graph_that_could_not_be_served_is_refused(edit: Edit, reason: str, tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    proto = load(base)
    edit(proto)
    base.graph.write_bytes(proto.SerializeToString())
    assert export(base) == 1
    assert reason in capsys.readouterr().err
    assert not ModelStore(tmp_path / "store").versions("reward")


def test_a_graph_that_does_not_look_at_its_mask_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("deberta").copy(tmp_path)
    proto = load(base)
    for node in proto.graph.node:
        node.input[:] = ["ones" if name == "attention_mask" else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    proto.graph.node.insert(0, helper.make_node("Pow", ["input_ids", "zero"], ["ones"]))
    base.graph.write_bytes(proto.SerializeToString())
    assert export(base) == 1
    assert "padding and the rows beside a sequence change its score" in capsys.readouterr().err


def test_a_graph_of_fewer_bits_is_compared_and_taken_as_asked(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    write_graph(to_float16(Graph.of(load(base))), base.graph)
    assert export(base) == 1
    assert "a score of the float16 graph differs from the base's own class by at most" in capsys.readouterr().err
    assert export(base, "--parity", "unverified") == 0
    np.testing.assert_allclose(served(base), of_class(base), atol=5e-3, rtol=0)
    assert manifest(base).notes["parity"].endswith("as accepted")
    assert manifest(base).metrics["gate_parity"] > 1e-4
    assert manifest(base).notes["training"].startswith("later versions start from the base's weights")


def test_a_graph_that_quantises_rows_together_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    quantize_dynamic(str(own_base("llama").graph), str(base.graph))
    assert export(base, "--parity", "unverified") == 1
    assert "quantises all rows of a run together" in capsys.readouterr().err


def test_positions_that_an_encoder_counts_itself_are_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("deberta").copy(tmp_path)
    proto = load(base)
    proto.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["b", "s"]))
    base.graph.write_bytes(proto.SerializeToString())
    assert export(base) == 1
    assert "takes position_ids, which deberta-v2 counts itself" in capsys.readouterr().err


def test_a_graph_that_pools_by_another_padding_token_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path, weights=False)
    about = json.loads((base.directory / "config.json").read_text())
    (base.directory / "config.json").write_text(json.dumps({**about, "pad_token_id": about["eos_token_id"]}))
    assert export(base, "--parity", "unverified") == 1
    assert "pools by another pad_token_id" in capsys.readouterr().err


def test_positions_beyond_the_models_are_never_asked_for(tmp_path: Path) -> None:
    base = own_base("bert").copy(tmp_path)
    assert export(base, "--max-length", "4096") == 0
    assert manifest(base).max_length == 256


def test_weights_of_another_model_are_refused_whatever_is_accepted(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    other = own_base("llama", pad_is_eos=True)
    torch.manual_seed(5)
    changed = copy.deepcopy(other.model)
    with torch.no_grad():
        changed.score.weight.add_(0.1)
    changed.config.pad_token_id = base.tokenizer.pad_token_id
    changed.save_pretrained(base.directory)
    for flags in ((), ("--parity", "unverified")):
        assert export(base, *flags) == 1
        assert "it was not made of these weights" in capsys.readouterr().err


def test_weights_that_are_damaged_or_not_whole_are_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    weights = base.directory / "model.safetensors"
    tensors = load_file(weights)
    del tensors["score.weight"]
    save_file(tensors, weights, {"format": "pt"})
    assert export(base) == 1
    assert "lacks weights of LlamaForSequenceClassification: score.weight" in capsys.readouterr().err
    weights.write_bytes(b"no tensors")
    assert export(base) == 1
    assert "its classifier does not load" in capsys.readouterr().err


def test_a_base_without_weights_is_refused_or_accepted_as_asked(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("modernbert").copy(tmp_path, weights=False)
    assert export(base) == 1
    assert "--parity unverified" in capsys.readouterr().err
    assert export(base, "--parity", "unverified") == 0
    said = "not compared: the base has no weights"
    assert manifest(base).notes["parity"] == said
    assert f"Parity: {said}." in capsys.readouterr().err
    assert "gate_parity" not in manifest(base).metrics
    np.testing.assert_allclose(served(base), of_class(base), atol=1e-5, rtol=0)


def test_a_layout_that_differs_from_the_tokenizers_is_refused(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("bert").copy(tmp_path)
    assert export(base, "--no-segment-ids") == 1
    assert "the layout of texts would differ from the base's own" in capsys.readouterr().err


def test_several_scores_need_a_word_on_what_they_are(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama", labels=3).copy(tmp_path)
    assert export(base) == 1
    error = capsys.readouterr().err
    assert "3 labels" in error
    assert "--label-weights NAME=WEIGHT,... says it (the labels are LABEL_0, LABEL_1, LABEL_2" in error
    assert export(base, "--label-weights", "LABEL_3=1") == 1
    assert not ModelStore(tmp_path / "store").versions("reward")


@pytest.mark.parametrize(
    ("labels", "said", "weights"),
    [
        (3, ("--heads-are", "ensemble"), np.eye(3)),
        (3, ("--label-weights", "LABEL_1=1"), np.array([[0], [1], [0]])),
        (3, ("--label-weights", "LABEL_0=-0.5,LABEL_2=2"), np.array([[-0.5], [0], [2]])),
        (2, (), np.array([[-1], [1]])),
    ],
)
def test_several_scores_are_served_as_what_they_are(
    labels: int, said: tuple[str, ...], weights: Any, tmp_path: Path
) -> None:
    base = own_base("llama", labels=labels).copy(tmp_path)
    assert export(base, *said) == 0
    np.testing.assert_allclose(served(base), of_class(base) @ weights, atol=1e-5, rtol=0)
    assert manifest(base).heads == weights.shape[1]


def test_anchors_fix_the_scale(tmp_path: Path, capsys: Capture) -> None:
    base = own_base("llama").copy(tmp_path)
    anchors = tmp_path / "anchors.jsonl"
    rows = [{"prompt": [{"role": "user", "content": p}], "response": a} for p, a in CONVERSATIONS]
    anchors.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export(base, "--anchors", str(anchors)) == 1
    assert "a scale needs 64 or more" in capsys.readouterr().err
    assert export(base) == 0
    calibration = manifest(base).calibration
    assert calibration is not None
    assert calibration.scale != 1
    assert manifest(base).notes["anchors"].startswith("96 shipped")


@pytest.mark.parametrize("flags", [("--precision", "int8"), ("--model", "policy"), ("--new-heads",)])
def test_flags_that_a_graph_cannot_follow_are_refused(flags: tuple[str, ...], tmp_path: Path) -> None:
    base = own_base("llama").copy(tmp_path)
    with pytest.raises(SystemExit) as ended:
        export(base, *flags)
    assert ended.value.code == 2


def reward_round(base: OwnBase, directory: Path) -> RewardRound:
    """A round with one signal to learn from, on the version that the base became."""
    ledger = Ledger(directory / "ledger")
    ledger.append([Recorded(f"{1000 + i}-0", choice(i)) for i in range(8)])
    file, metrics = StateFile(directory), TrainerMetrics()
    current = CurrentRound("reward", file, metrics)
    current.reach(RoundState(1, "training", "", "1007-0", 8, 8, seed=1, started_at=0.0, parent="1"))
    settings = TrainSettings(
        archive=str(directory / "ledger"),
        work_dir=directory,
        store=str(base.directory.parent / "store"),
        heldout_share=0.25,
    )
    client: Any = None
    return RewardRound(
        settings, ModelStore(settings.store), ledger, client, client, metrics, threading.Event(), current
    )


def test_a_graph_without_weights_is_served_but_no_round_starts_from_it(tmp_path: Path) -> None:
    base = own_base("llama").copy(tmp_path, weights=False)
    assert export(base, "--parity", "unverified") == 0
    assert manifest(base).notes["training"].startswith("no later version can be trained from it")
    work = tmp_path / "work"
    assert reward_round(base, work).run() == "refused"
    (reason,) = json.loads((work / "refused" / "reward-1" / "reasons.json").read_text())["reasons"]
    assert reason == (
        "reward version 1 is an ONNX graph without torch weights, so no round can start from it: promote a version "
        "that has them"
    )


@pytest.mark.parametrize("kind", ["bert", "llama_positions"])
def test_a_graph_with_weights_goes_on_training_from_them(kind: str, tmp_path: Path) -> None:
    base = own_base(kind).copy(tmp_path)
    assert export(base) == 0
    store = ModelStore(tmp_path / "store")
    start = start_from(store, "1", RewardHyperparameters(), seed=0)
    rows = [start.encoder.pair([Turn("user", prompt)], answer) for prompt, answer in CONVERSATIONS]
    logits = logits_of(start.model, rows, start.encoder.format.pad, 4096).mean(1, keepdim=True)
    np.testing.assert_allclose(logits.detach().numpy(), of_class(base), atol=1e-5, rtol=0)
    assert start.model.heads.out_features == 4
