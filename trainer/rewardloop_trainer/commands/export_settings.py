"""Settings of `rewardloop export`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rewardloop.formats.mixing.names import POLICY, REWARD, further_models
from rewardloop.process.settings import ProcessSettings
from rewardloop_trainer.reward.heads.choice import HeadChoice

# Settings that every export heeds.
_ANY_BASE = ("base", "store", "signing_key", "model", "max_length", "layout")


class ExportSettings(ProcessSettings, HeadChoice):
    """Exports a Hugging Face model as a version in the model store, and prints the version."""

    basic_settings = (
        *("base", "store", "model", "max_length", "layout", "heads", "new_heads", "label_weights", "step_scores"),
        *("step_token", "onnx", "served_as"),
    )
    setting_groups = (
        ("new_heads", "Trained heads"),
        ("base", "Every model"),
        ("heads", "Reward models"),
        ("onnx", "Your own ONNX"),
        ("served_as", "A vLLM or SGLang server that runs it"),
    )

    base: str = Field(description="Hugging Face directory or hub id of the model, safetensors only")
    store: str = Field(description="model store to publish to: a path or an fsspec URL such as s3://...")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs the version")
    model: str = Field(
        REWARD, description="what the model becomes: reward, policy, or another reward model's name, such as helpful"
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="most tokens of prompt and response; default: all that the base reads, for rewards to 2048",
    )
    layout: Literal["exact", "plain"] = Field(
        "exact", description="lay texts out as the base's own tokenizer and chat template do, or refuse it; or plainly"
    )
    seed: int = Field(0, description="seed that new score heads are drawn with")

    heads: int = Field(4, ge=1, description="score heads; the spread of their scores is the uncertainty")
    pooling: Literal["auto", "mean", "layers", "cls"] = Field(
        "auto", description="how an encoder's states become one; auto: those of a middle and the last layer (layers)"
    )
    segment_ids: bool | None = Field(
        None, description="mark the response with token type 1; default: in sequence classifiers whose tokenizer does"
    )
    adapters: Literal["none", "query_value", "attention", "all"] = Field(
        "query_value", description="linear layers whose changes later versions can publish as adapters of this graph"
    )
    anchors: Path | None = Field(
        None,
        description="JSONL rows {prompt, response}, 64 or more, that fix the scale of scores; default: shipped ones",
    )
    precision: Literal["float32", "int8", "float16", "bfloat16"] = Field(
        "float32", description="precision of the graph: int8 suits CPUs, float16 CUDA; bfloat16 halves the file"
    )
    gate_pairs: Path | None = Field(
        None,
        description="JSONL rows {prompt, chosen, rejected}: the precision is used if it orders them as float32 does",
    )

    onnx: Path | None = Field(
        None,
        description="your own ONNX graph of a sequence classifier, with its weights beside it; the base is then a "
        "directory with its config, its tokenizer and, if there are any, its weights",
    )
    heads_are: Literal["labels", "ensemble"] = Field(
        "labels",
        description="what several scores of your graph, or of the classifier that a server runs, are: labels, of which "
        "label_weights makes one score, or an ensemble, in which each is a head",
    )
    parity: Literal["compared", "unverified"] = Field(
        "compared",
        description="refuse your graph if it cannot be compared with weights of the base or, in less than float32, "
        "differs from them; or publish it unverified",
    )

    served_as: str = Field(
        "",
        description="the name by which a vLLM or SGLang server serves the base, a decoder that classifies sequences: "
        "the version holds no weights, and proof of what that server must give in the precision that it computes in",
    )

    @field_validator("model")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """Raises ValueError for a name that no model can have."""
        if value not in (REWARD, POLICY):
            further_models([value])
        return value

    @model_validator(mode="after")
    def _fit_the_graph(self) -> Self:
        """Refuse settings that would be ignored."""
        fields = type(self).model_fields
        changed = {name for name in fields if getattr(self, name) != fields[name].default}
        ignored = sorted(changed & {"new_heads", "pooling", "adapters", "precision", "gate_pairs"})
        if self.served_as:
            return self._fit_the_server(changed)
        if self.onnx is not None and self.model == POLICY:
            raise ValueError("onnx: a user's own graph is a reward model; leave out model")
        if self.onnx is not None and ignored:
            raise ValueError(f"onnx: a user's own graph is taken as it is; leave out {', '.join(ignored)}")
        if self.onnx is None and {"heads_are", "parity"} & changed:
            raise ValueError("heads_are and parity are about a graph; name it with onnx")
        return self

    def _fit_the_server(self, changed: set[str]) -> Self:
        """Raises ValueError for settings that a version without weights has no use for."""
        kept = {*_ANY_BASE, "served_as", "heads_are", "label_weights", "anchors", "precision"}
        if self.model == POLICY:
            raise ValueError("served_as: a policy on a server is a version as any other; leave it out")
        if unused := sorted(changed - kept):
            raise ValueError(f"served_as: the server runs the base as it is; leave out {', '.join(unused)}")
        if self.precision == "int8":
            raise ValueError("served_as: precision is what the server computes in: float32, float16 or bfloat16")
        return self
