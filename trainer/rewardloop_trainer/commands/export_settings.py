"""Settings of `rewardloop export`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rewardloop.process.settings import ProcessSettings


class ExportSettings(ProcessSettings):
    """Exports a Hugging Face model as a version in the model store, and prints the version."""

    basic_settings = ("base", "store", "model", "max_length", "anchors", "precision", "gate_pairs", "signing_key")
    setting_groups = (("base", "Every model"), ("heads", "Reward models"))

    base: str = Field(description="Hugging Face directory or hub id of the model, safetensors only")
    store: str = Field(description="model store to publish to: a path or an fsspec URL such as s3://...")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs the version")
    model: Literal["reward", "policy"] = Field("reward", description="what the model becomes")
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
    new_heads: bool = Field(
        False, description="draw new score heads, even if the checkpoint has trained ones; else such a base is refused"
    )
    pooling: Literal["auto", "mean", "cls"] = Field("auto", description="how an encoder's states become one")
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
