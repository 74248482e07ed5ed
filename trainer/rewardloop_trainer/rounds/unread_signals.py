"""Counts the new signals that no round of a model learns from, so that they do not count towards one.

They are those of another aspect, and those whose conversation the live version's text layout refuses, such as a system
turn to a model whose chat template has none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import redis
import structlog
from tokenizers import Tokenizer

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.signals import aspect_of
from rewardloop.formats.store import TOKENIZER, ModelStore, StoreError
from rewardloop.formats.text import Encoder, RefusedConversation, turns
from rewardloop.formats.text_format import read_text_format
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.live_pointer import live_version
from rewardloop_trainer.rounds.pauses import ServerAway
from rewardloop_trainer.vocabulary import ModelName

log = structlog.get_logger()

_AT_ONCE = 500


class UnreadSignals:
    """Counts for one model, and reads each row of the ledger once as long as the layout stays the same."""

    def __init__(
        self, model: ModelName, store: ModelStore, client: redis.Redis, ledger: Ledger, metrics: TrainerMetrics
    ) -> None:
        self._model: ModelName = model
        self._aspect = REWARD if model == POLICY else model
        self._store = store
        self._redis = client
        self._ledger = ledger
        self._metrics = metrics
        self._version: str | None = None
        self._layout = ""
        self._encoder: Encoder | None = None
        self._after: str | None = None
        self._through: str | None = None
        self._reasons: Counter[str] = Counter()
        self._others = 0  # signals of other aspects

    def count(self, after: str | None) -> int:
        """Return how many rows after the stream id ``after`` have another aspect, or are refused by the layout.

        The counts of the latter by reason are shown in the metrics. While Redis or the store does not answer, the last
        layout stays.
        """
        try:
            if self._has_new_layout() or after != self._after:
                self._begin(after)
        except (*REDIS_FAILURES, ServerAway, StoreError, OSError, ValueError) as error:
            log.warning("the live version's text layout cannot be read", model=self._model, error=str(error))
            if after != self._after:
                self._begin(after)
        until = self._ledger.last_stream_id
        if until is not None and until != self._through:
            for rows in self._ledger.parts(self._through, until, most_rows=_AT_ONCE):
                own = [row for row in rows if aspect_of(row.event) == self._aspect]
                self._others += len(rows) - len(own)
                if self._encoder is not None:
                    self._reasons.update(self._refused(self._encoder, own))
            self._through = until
        self._metrics.show_unread(self._model, self._reasons)
        return self._reasons.total() + self._others

    def _begin(self, after: str | None) -> None:
        self._after = self._through = after
        self._reasons.clear()
        self._others = 0

    def _refused(self, encoder: Encoder, rows: Iterable[Recorded]) -> Iterator[str]:
        groups = [(turns(row.event.prompt), ["a"]) for row in rows]
        read = encoder.completions if self._model == POLICY else encoder.groups
        return (str(each) for each in read(groups) if isinstance(each, RefusedConversation))

    def _has_new_layout(self) -> bool:
        """Load the live version's layout if it is another one. Returns whether it is."""
        version = live_version(self._redis, self._store, self._model)
        if version is None or version == self._version:
            return False
        manifest = self._store.manifest(self._model, version)
        layout = json.dumps([manifest.files.get(TOKENIZER), dict(manifest.text_format)], sort_keys=True)
        if is_other := layout != self._layout:
            directory = self._store.fetch(self._model, version)
            tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
            self._encoder = Encoder(tokenizer, read_text_format(manifest.text_format), manifest.max_length)
            self._layout = layout
        self._version = version
        return is_other
