"""compare: scores a share of the answered groups again with the shadow version, for the metrics alone.

Nothing here delays or fails a request. A comparison begins after the reply is made and runs behind all other work. If
comparisons cannot keep up, groups are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import combinations

import structlog

from rewardloop.formats.manifest import reads_alike
from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoded
from rewardloop.v1 import reward_pb2
from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.vocabulary import AGREEMENTS, Agreement
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batching import Batching, Version
from rewardloop_server.scoring.reply import scores_of
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.versions.host import VersionHost

log = structlog.get_logger()

# Most comparisons at once. Each holds its request and its rows in memory.
_MAX_PENDING = 256

_CALLER = "shadow"  # the name under which the shadow's texts wait to be tokenized


class ShadowScorer:
    """Compares the shadow version's scores of one model with those that callers got. Used from the event loop."""

    def __init__(
        self, host: VersionHost[Version], tokenizers: TokenizePool, batcher: Batching, metrics: ServerMetrics
    ) -> None:
        self._host = host
        self._tokenizers = tokenizers
        self._batcher = batcher
        self._metrics = metrics
        self._dropped = metrics.shadow_dropped_total.labels(model=host.model)
        self._difference = metrics.shadow_score_difference.labels(model=host.model)
        self._pending: set[asyncio.Task[None]] = set()

    def answered(
        self,
        request: reward_pb2.ScoreRequest,
        key: bytes,
        live: Manifest,
        rows: list[Encoded],
        scores: Sequence[float],
    ) -> None:
        """Compare a group that was answered, later, if it is in the shadow's share.

        Args:
            request: The group.
            key: The prompt's bytes, by which the share is drawn.
            live: The version that answered.
            rows: What it read.
            scores: What it gave, calibrated.
        """
        if not self._host.takes_shadow(key):
            return
        if len(self._pending) >= _MAX_PENDING:
            self._dropped.inc()
            return
        task = asyncio.create_task(self._compare(request, key, live, rows, scores))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _compare(
        self,
        request: reward_pb2.ScoreRequest,
        key: bytes,
        live: Manifest,
        rows: list[Encoded],
        scores: Sequence[float],
    ) -> None:
        with self._host.lease_shadow(key) as model:
            if model is None or model.manifest.digest == live.digest:
                return
            try:
                if not reads_alike(live, model.manifest):
                    rows = await self._tokenizers.encode(model.encoder, request, _CALLER, is_bulk=True)
                scored = await self._batcher.score_shadow(model, rows)
                if scored is None:
                    return
                shadows = scores_of(model, rows, scored.logits)
            except RewardloopError as error:
                log.warning("shadow not scored", version=model.manifest.version, reason=error.reason)
                self._dropped.inc()
                return
        self._observe(scores, shadows)

    def _observe(self, live: Sequence[float], shadow: Sequence[float]) -> None:
        for before, after in zip(live, shadow, strict=True):
            self._difference.observe(after - before)
        if len(live) < 2:
            return
        first: Agreement = "agree" if best(live) == best(shadow) else "disagree"
        self._metrics.compared(self._host.model, "best", first, 1)
        for outcome, pairs in pair_agreement(live, shadow).items():
            self._metrics.compared(self._host.model, "pair", outcome, pairs)


def best(scores: Sequence[float]) -> int:
    """Return the index of the highest score; of equal scores the first."""
    return max(range(len(scores)), key=lambda i: scores[i])


def pair_agreement(live: Sequence[float], shadow: Sequence[float]) -> dict[Agreement, int]:
    """Count the pairs of responses that both versions order, by whether they agree. Equal scores are no order."""
    counts: dict[Agreement, int] = dict.fromkeys(AGREEMENTS, 0)
    for i, j in combinations(range(len(live)), 2):
        product = (live[i] - live[j]) * (shadow[i] - shadow[j])
        if product:
            counts["agree" if product > 0 else "disagree"] += 1
    return counts
