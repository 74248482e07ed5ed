"""What an export for a server elsewhere writes makes that server score as the Hugging Face class, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis.asyncio import Redis
from support.named_models import group, named_models
from support.pooled_loading import load, loading, refused
from support.pooled_versions import Base, encoder_of, rows_of
from support.pooling_server import pooling_server
from support.real_vllm import POOLS, RealVllm

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_server.scoring.engine import EngineAway
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import NothingToTrain, start_from

RESPONSES = ("Light scatters.", "no", "\nfine", "Because blue light is scattered more than red light. " * 3)
FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.make("qwen2", tmp_path_factory.mktemp("qwen2") / "base")


def published(base: Base, directory: Path, name: str = "judge", *flags: str) -> Manifest:
    """The base's version in the store of a test."""
    return ModelStore(directory / "models").publish(*base.exported(name, *flags))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
async def test_all_three_rpcs_give_the_logits_of_the_hugging_face_class(
    kind: str, redis: Redis, tmp_path: Path
) -> None:
    base = Base.make(kind, tmp_path / "base")
    manifest = published(base, tmp_path)
    with pooling_server({"judge": base.outputs}, max_model_len=128) as server:
        async with named_models(redis, tmp_path, (), pooling_urls=[server.url]) as models:
            await models.until_active("reward")
            rows = rows_of(encoder_of(models.store, manifest), "alpha", RESPONSES)
            right = base.logits(rows)[:, 0]
            reply = await models.score("", RESPONSES)
            assert np.allclose([each.logit for each in reply.scores], right, atol=FLOAT32)
            calibration = manifest.calibration
            assert calibration is not None
            tokens = [row.response_tokens for row in rows]
            scores = [calibration.score(float(each), count) for each, count in zip(right, tokens, strict=True)]
            assert np.allclose([each.score for each in reply.scores], scores, atol=10 * FLOAT32 * calibration.scale)
            groups = [group("", (response,)) for response in RESPONSES]
            batch = await models.batch(*groups)
            assert np.allclose([item.result.scores[0].logit for item in batch.items], right, atol=FLOAT32)
            stream = await models.stream(*groups)
            assert np.allclose([stream[str(i)].result.scores[0].logit for i in range(4)], right, atol=FLOAT32)
            terms = [models.figure("cost_model_seconds", model="reward", version="1", term=t) for t in ("fixed",)]
            assert all(terms), "the cost of a run was measured"
    paths = {path for path, _ in server.history}
    assert paths == {"/pooling"}
    assert all(isinstance(i, int) for _, body in server.history for row in body["input"] for i in row), "ids, not texts"


def test_no_round_starts_from_a_version_that_a_server_elsewhere_runs(base: Base, tmp_path: Path) -> None:
    version = published(base, tmp_path).version
    with pytest.raises(NothingToTrain, match="reward version 1 is run by a server elsewhere and has no torch weights"):
        start_from(ModelStore(tmp_path / "models"), version, RewardHyperparameters.model_validate({}), 0)


@pytest.mark.parametrize(
    ("labels", "flags", "weights"),
    [
        (2, (), np.array([[-1.0], [1.0]])),
        (3, ("--label-weights", "LABEL_0=0.5,LABEL_2=-2"), np.array([[0.5], [0.0], [-2.0]])),
        (3, ("--heads-are", "ensemble"), np.eye(3)),
    ],
)
def test_several_outputs_are_a_sum_of_labels_or_heads(
    labels: int, flags: tuple[str, ...], weights: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    base = Base.make("qwen2", tmp_path / "base", labels)
    manifest = published(base, tmp_path, "judge", *flags)
    assert manifest.heads == weights.shape[1]
    with pooling_server({"judge": base.outputs}) as server, loading(server.url) as pooled:
        model = load(pooled, tmp_path, manifest)
        rows = rows_of(model.encoder, "alpha", RESPONSES)
        assert np.allclose(model.run(rows)[0], base.logits(rows) @ weights, atol=1e-4)


def test_probabilities_of_several_labels_are_refused(tmp_path: Path) -> None:
    base = Base.make("qwen2", tmp_path / "base", 2)
    manifest = published(base, tmp_path)
    with pooling_server({"judge": base.outputs}, activates=True) as server:
        refused(server, tmp_path, manifest, r"probabilities \(softmax\)")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--precision", "int8"), "precision is what the server computes in"),
        (("--new-heads",), "leave out new_heads"),
        (("--model", "policy"), "a policy on a server"),
    ],
)
def test_flags_that_a_version_without_weights_has_no_use_for_are_refused(
    flags: tuple[str, ...], reason: str, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        base.export(tmp_path / "models", "judge", *flags)
    assert reason in f"{refusal.value.code} {capsys.readouterr().err}"


def test_a_base_that_no_server_could_prove_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = Base.make("qwen2", tmp_path / "flat")
    with torch.no_grad():
        flat.model.score.weight.zero_()
    flat.model.save_pretrained(flat.directory)
    assert flat.export(tmp_path / "models", "judge") == 1
    assert "would let other models pass" in capsys.readouterr().err
    encoder = Base.make("bert", tmp_path / "bert")
    assert encoder.export(tmp_path / "models", "judge") == 1
    assert "--served-as takes decoders" in capsys.readouterr().err


def test_half_precision_is_allowed_what_the_class_moves_by(base: Base, tmp_path: Path) -> None:
    """A server in bfloat16 passes a proof for bfloat16, and not one for float32."""
    rounded = Base.make("qwen2", tmp_path / "rounded")
    rounded.model.to(torch.bfloat16)
    exact = published(base, tmp_path)
    stated = published(base, tmp_path, "judge", "--precision", "bfloat16")
    assert stated.precision == "bfloat16"
    with pooling_server({"judge": rounded.outputs}) as server, loading(server.url) as pooled:
        load(pooled, tmp_path, stated)
        refused(server, tmp_path, exact, "the tolerance of float32: it serves other weights, or computes in another")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_itself_gives_the_logits_of_the_hugging_face_class(tmp_path: Path) -> None:
    # Heads of a size that vLLM's attention on a CPU takes.
    base = Base.make("qwen2", tmp_path / "base", hidden_size=128)
    manifest = published(base, tmp_path)
    vllm = RealVllm(base.directory, "judge", tmp_path / "vllm.log", *POOLS)
    try:
        vllm.until_serving()
        with loading(vllm.url) as pooled:
            model = load(pooled, tmp_path, manifest)
            rows = rows_of(model.encoder, "Why is the sky blue?", RESPONSES)
            difference = float(np.abs(model.run(rows)[0] - base.logits(rows)).max())
            print(f"largest logit difference: {difference:.3g}")
            assert difference < 1e-4
            vllm.kill()
            with pytest.raises(EngineAway):
                model.run(rows)
            assert not model.works()
            vllm.start()
            vllm.until_serving()
            assert model.works() or model.works(), "it proves itself again"
            assert np.allclose(model.run(rows)[0], base.logits(rows), atol=1e-4)
    finally:
        if vllm.process.poll() is None:
            vllm.kill()
