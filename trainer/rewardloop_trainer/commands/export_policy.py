"""Exports a Hugging Face base as a version of the policy."""

from __future__ import annotations

from pathlib import Path

from rewardloop.formats.signatures import signer
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoder
from rewardloop_trainer.commands.export_notes import said
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.commands.progress import FileProgress
from rewardloop_trainer.data.base_layout import decoder_layout
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.input_length import input_length
from rewardloop_trainer.export.policy import PARITY, write_policy
from rewardloop_trainer.policy.base_policy import PolicyBase
from rewardloop_trainer.rounds.publish import code_version


def export_policy_base(options: ExportSettings, progress: FileProgress) -> Manifest:
    """Publish a base as a version of the policy. Raises as `write_policy` and `ModelStore.publish` do."""
    base = PolicyBase.of(options.base)
    tokenizer = load_tokenizer(base.tokenizer)
    layout = decoder_layout(tokenizer, "write", choice=options.layout)
    length = input_length(base.config, tokenizer, options.max_length, default=None, setting="--max-length")
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, length.tokens)
    notes = {"layout": layout.note, "max_length": length.reason, "parity": PARITY}
    store = ModelStore(options.store, signer=signer(options.signing_key), watch=progress)
    with store.scratch("policy") as candidate:
        write_policy(base, tokenizer, encoder, candidate, lambda named: notes.update(unused=named))
        manifest = Manifest(
            model="policy",
            text_format=layout.text_format.to_json(),
            max_length=length.tokens,
            base=options.base,
            code_version=code_version(),
            notes=said(notes),
        )

        def write(target: Path) -> None:
            for path in candidate.iterdir():
                path.rename(target / path.name)

        return store.publish(manifest, write)
