"""Loads what is evaluated: reward models, policies, and held-out signals."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoder
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import recognise
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.assessment.loaded_model import LoadedReward, load_reward
from rewardloop_trainer.assessment.policies.contender import AnswersInFile, Contender, read_answers
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.data.base_path import check_base_path
from rewardloop_trainer.data.files.policy_rows import UnusableRows, read_policy_data
from rewardloop_trainer.data.pools.pools import PoolLimits
from rewardloop_trainer.data.preferences import Record, from_event
from rewardloop_trainer.data.replay import POOLS, load_heldout, load_trained, readable
from rewardloop_trainer.policy.rollouts import Sampling
from rewardloop_trainer.policy.start import start_from_base, start_from_store


class NothingToEvaluate(ValueError):
    """Raised if what the settings name is not there, or holds nothing to measure on. The message says what."""


def store_of(settings: EvaluateSettings) -> ModelStore:
    """Open the store of the settings. Raises UnusableKey."""
    return ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))


def reward_of(settings: EvaluateSettings, named: str, model: str = REWARD) -> LoadedReward:
    """Load a reward model of the settings' store; a number alone is a version of ``model``. See `load_reward`."""
    return load_reward(store_of(settings), named, model, settings.seed)


def load_policy(settings: EvaluateSettings, named: str) -> Contender | AnswersInFile:
    """Load a policy: a version of the store, a Hugging Face directory, or a file of its answers.

    Raises:
        StoreError, UnusableBase, UnreadableFile, MissingAnswers: If it cannot be loaded.
    """
    if Path(named).is_file():
        return read_answers(Path(named))
    if named.isdigit():
        start, name = start_from_store(store_of(settings), named, 0), f"policy {named}"
    else:
        check_base_path(named)
        start, name = start_from_base(named, 0), Path(named).name
    most = min(settings.max_new_tokens, start.encoder.max_length // 2)
    return Contender(name, start.load().eval(), start.encoder, Sampling(settings.responses, most, settings.seed))


def tokenizer_of(settings: EvaluateSettings, named: str) -> Callable[[], Any]:
    """Return what loads the Hugging Face tokenizer of a policy with weights. Exceptions as of `load_policy`."""
    if named.isdigit():
        return start_from_store(store_of(settings), named, 0).tokenizer()
    return start_from_base(named, 0).tokenizer()


def heldout_records(settings: EvaluateSettings, encoder: Encoder | None) -> tuple[Record, ...]:
    """Return the held-out records that a model can read, a random sample of at most ``settings.signals``.

    Raises:
        NothingToEvaluate: If there is none.
        UnreadableFile, UnusableRows: If a file cannot be used.
    """
    records: list[Record] = []
    for path in settings.data:
        records += _records_in(path, settings.model)
    if settings.work_dir is not None:
        pools = settings.work_dir / POOLS
        if not pools.exists():
            raise NothingToEvaluate(f"{pools} is not there: no round has held anything out yet; --data names files")
        records += load_heldout(pools, settings.model, PoolLimits())
    return _sampled(settings, records, encoder)


def trained_records(settings: EvaluateSettings, encoder: Encoder | None) -> tuple[Record, ...]:
    """Return records that training saw, if they are known. Exceptions as of `heldout_records`."""
    if settings.train is not None:
        return _sampled(settings, _records_in(settings.train, settings.model), encoder)
    if settings.work_dir is not None:
        return _sampled(settings, list(load_trained(settings.work_dir / POOLS, settings.model, PoolLimits())), encoder)
    return ()


def _records_in(path: Path, model: str) -> list[Record]:
    """The signals of a file, with the row's own tags and that of the file; for policies its prompts alone as well.

    Of a reward model those of its aspect, and those that name none.
    """
    source = SourceFile.of(path)
    if model == POLICY:
        return list(read_policy_data(source).records())
    records: list[Record] = []
    reading = recognise(source.shown, source.lines(), Choices())
    for line in source.lines():
        try:
            row = line.value()
            tags = row.get("tags") if isinstance(row, dict) else None
            of_row = {str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {}
            labels = Labels(tags={**of_row, "file": path.name.partition(".")[0]})
            events = [event for event in reading.events(row, labels) if event.aspect in ("", model)]
            records += [record for event in events for record in from_event(event)]
        except RowError as error:
            raise UnusableRows(f"{path}:{line.number}: {error}") from error
    return records


def _sampled(settings: EvaluateSettings, records: list[Record], encoder: Encoder | None) -> tuple[Record, ...]:
    """At most so many of the records, by a draw of the seed, in their order."""
    if len(records) > settings.signals:
        kept = sorted(random.Random(settings.seed).sample(range(len(records)), settings.signals))
        records = [records[i] for i in kept]
    read = tuple(records) if encoder is None else readable(records, encoder)
    if not read:
        raise NothingToEvaluate("nothing to evaluate on: there is no held-out signal that the model can read")
    return read
