"""The loader of reward versions on damaged files: a version loads and runs, or is refused with a typed error.

Half of the damage is done after publishing, which hashes must find; half before, as by a publisher who is wrong or
wicked: there the graph, adapter, tokenizer and manifest are read as they are.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import mutate

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support.adapter_graphs import WIDTH, lora, write_adapter, write_decoder
from support.reward_graphs import word_tokenizer

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ADAPTER, MANIFEST, CorruptVersion, Manifest, ModelStore, Trunk
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel

_MAX_LENGTH = 48
_ROW = Encoded([1, 4, 5, 2, 6, 2], None, False, 2, 4)


class ModelCases:
    """Cases in ``work``. `run` gives the outcome; what it raises is a fault."""

    def __init__(self, work: Path) -> None:
        self._store = ModelStore(work / "store")
        self._encoder, self._decoder = _publish_encoder(self._store), _publish_decoder(self._store)
        self._delta = _publish_delta(self._store, self._decoder)
        self._pool = SessionPool(self._store, Device("cpu", 1, spin=False), ServerMetrics())
        # What serves while the others are tried.
        self._serving = self._load(self._encoder)
        self._score = self._serving.run([_ROW])[0].tolist()

    def run(self, chance: Random) -> str:
        source = chance.choice((self._encoder, self._decoder, self._delta, self._delta))
        damage = chance.choice((self._after_publishing, self._before_publishing, self._wrong_manifest))
        version = damage(source, chance)
        sessions = self._pool.sessions
        try:
            model = self._load(self._store.manifest("reward", version))
        except RewardloopError as error:
            outcome = error.reason
        except CorruptVersion as error:
            outcome = type(error).__name__
        else:
            logits = model.run([_ROW])[0]
            outcome = "loaded" if np.isfinite(logits).all() else "loaded, gives NaN for another input"
            model.close()
        finally:
            shutil.rmtree(self._store.path("reward", version))
        if self._pool.sessions != sessions:
            raise AssertionError(f"{self._pool.sessions - sessions} sessions are left open")
        return f"{damage.__name__.strip('_').replace('_', ' ')}: {outcome}"

    def check(self) -> None:
        """The version that was loaded first still gives its score."""
        if self._serving.run([_ROW])[0].tolist() != self._score:
            raise AssertionError("the version that serves gives another score")

    def _load(self, manifest: Manifest) -> RewardModel:
        return self._pool.load(manifest, self._store.fetch("reward", manifest.version))

    def _after_publishing(self, source: Manifest, chance: Random) -> str:
        version = self._store.publish(source, lambda target: self._copy(source, target)).version
        directory = Path(self._store.path("reward", version))
        path = directory / chance.choice([*source.files, MANIFEST])
        data = path.read_bytes()
        path.write_bytes(mutate.mutated(data, chance, texts=path.suffix == ".json"))
        return version

    def _before_publishing(self, source: Manifest, chance: Random) -> str:
        def write(target: Path) -> None:
            self._copy(source, target)
            name = chance.choice(sorted(source.files) + [n for n in source.files if not n.endswith(".json")] * 3)
            path = target / name
            if path.suffix == ".json" and chance.random() < 0.5:
                value = mutate.other_json(json.loads(path.read_text()), chance)
                path.write_text(json.dumps(value))
            else:
                path.write_bytes(mutate.mutated(path.read_bytes(), chance, texts=path.suffix == ".json"))

        return self._store.publish(replace(source, version="", digest=""), write).version

    def _wrong_manifest(self, source: Manifest, chance: Random) -> str:
        """Fields of the kind that they must be, but wrong, under a digest that is right; or any JSON."""
        if chance.random() < 0.4:
            version = self._store.publish(source, lambda target: self._copy(source, target)).version
            path = Path(self._store.path("reward", version), MANIFEST)
            path.write_text(json.dumps(mutate.other_json(json.loads(path.read_text()), chance)))
            return version
        text_format = mutate.other_json(dict(source.text_format), chance)
        fields: dict[str, Any] = {
            "max_length": chance.choice((1, 2, 3, 7, 47, 49, 300)),
            "heads": chance.choice((1, 2, 3, 1000)),
            "text_format": text_format if isinstance(text_format, dict) else {},
            "trunk": Trunk(chance.choice(("1", "2", "9", "x")), chance.choice((source.digest, "", "é"))),
        }
        changed = chance.sample(sorted(fields), chance.randint(1, 2))
        manifest = replace(source, version="", digest="", **{name: fields[name] for name in changed})
        return self._store.publish(manifest, lambda target: self._copy(source, target)).version

    def _copy(self, source: Manifest, target: Path) -> None:
        for name in source.files:
            shutil.copyfile(Path(self._store.path("reward", source.version), name), target / name)


def _publish_encoder(store: ModelStore) -> Manifest:
    """``input_ids, attention_mask`` to the sum of the ids, by two heads."""
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["real"]),
        helper.make_node("Cast", ["real"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axis"], ["total"], keepdims=1),
        helper.make_node("MatMul", ["total", "factors"], ["wide"]),
        helper.make_node("Reshape", ["wide", "shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "starts", "ends"], ["logits"]),
    ]
    arrays = {
        "axis": np.array([1], dtype=np.int64),
        "factors": np.array([[1.0, 2.0]], dtype=np.float32),
        "shape": np.array([-1, 2], dtype=np.int64),
        "starts": np.array([0], dtype=np.int64),
        "ends": np.array([2**31], dtype=np.int64),
    }
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "sum", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def write(directory: Path) -> None:
        onnx.save(model, directory / "model.onnx")
        word_tokenizer().save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(), write)


def _publish_decoder(store: ModelStore) -> Manifest:
    def write(directory: Path) -> None:
        write_decoder(directory / "model.onnx")
        word_tokenizer().save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(), write)


def _publish_delta(store: ModelStore, trunk: Manifest) -> Manifest:
    def write(directory: Path) -> None:
        parameters = lora(1) | {"heads.weight": np.full((2, WIDTH), 1 / math.sqrt(WIDTH), np.float32)}
        write_adapter(directory / ADAPTER, parameters)
        word_tokenizer().save(str(directory / "tokenizer.json"))

    return store.publish(replace(_manifest(), trunk=Trunk(trunk.version, trunk.digest)), write)


def _manifest() -> Manifest:
    text_format = TextFormat.for_encoder(word_tokenizer()).to_json()
    return Manifest(model="reward", text_format=text_format, max_length=_MAX_LENGTH, heads=2)
