"""Small sequence classifiers of transformers, and the versions that are exported of them for a server elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForSequenceClassification

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded, Encoder, Turn
from rewardloop_server.loading.opening import read_encoder
from rewardloop_trainer.commands import export as export_cli
from support.head_bases import save


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint and its class.

    Attributes:
        directory: The checkpoint.
        model: The class in memory.
        exports: Stores with its exports, by name and flags.
    """

    directory: Path
    model: Any
    exports: dict[tuple[str, ...], ModelStore] = field(default_factory=dict)

    @classmethod
    def make(cls, kind: str, directory: Path, labels: int = 1, **more: Any) -> Base:
        """Save one."""
        # transformers adds a token of its own to a tokenizer of Qwen2.
        model = save(AutoModelForSequenceClassification, kind, directory, labels, vocab_size=264, **more)
        return cls(directory, model)

    def export(self, store: Path, name: str, *flags: str) -> int:
        """Export it for a server that serves it by this name. Returns the exit status."""
        argv = ["--base", str(self.directory), "--store", str(store), "--served-as", name]
        return export_cli.main([*argv, "--max-length", "128", *flags])

    def exported(self, *how: str) -> tuple[Manifest, Callable[[Path], None]]:
        """The manifest of an export by name and flags, made once, and what copies its files."""
        store = self.exports.get(how)
        if store is None:
            place = self.directory.with_name(f"{self.directory.name}-{len(self.exports)}")
            assert self.export(place, *how) == 0
            store = self.exports[how] = ModelStore(place)
        manifest, files = store.manifest("reward", 1), store.fetch("reward", 1)

        def copy(target: Path) -> None:
            for name in manifest.files:
                shutil.copyfile(files / name, target / name)

        return manifest, copy

    def outputs(self, ids: list[int]) -> list[float]:
        """What the class gives for token ids."""
        with torch.inference_mode():
            found: list[float] = self.model(input_ids=torch.tensor([ids])).logits[0].float().tolist()
        return found

    def logits(self, rows: list[Encoded]) -> npt.NDArray[np.float32]:
        """What the class gives for each sequence alone, (sequences, outputs)."""
        return np.array([self.outputs(row.ids) for row in rows], dtype=np.float32)


def encoder_of(store: ModelStore, manifest: Manifest) -> Encoder:
    """The version's own encoder."""
    return read_encoder(manifest, store.fetch(manifest.model, manifest.version))


def rows_of(encoder: Encoder, prompt: str, responses: tuple[str, ...]) -> list[Encoded]:
    """What a server makes of a prompt's responses."""
    return [encoder.pair((Turn("user", prompt),), response) for response in responses]
