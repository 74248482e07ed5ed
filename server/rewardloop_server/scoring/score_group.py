"""score a group: the one way from a prompt and its responses to their scores, whichever RPC asks.

lease a version -> estimate and reserve -> tokenize -> cache or run -> reply -> freshness, shadow, timings

A group in the canary's share is scored by the live version instead while the canary's server is away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import structlog

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoded
from rewardloop.formats.vocabulary import LANES
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.errors import EngineStuck, InvalidRequest, Violation
from rewardloop_server.calls.estimate import estimated_tokens
from rewardloop_server.calls.vocabulary import STAGES
from rewardloop_server.doors.call import Call
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batching import Batching, Version
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import Floats
from rewardloop_server.scoring.lane import Scored
from rewardloop_server.scoring.reply import reply_of
from rewardloop_server.scoring.shadow import ShadowScorer
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost

log = structlog.get_logger()

# Called with the manifest, the lane, the number of rows, the seconds of tokenizing and of everything, and the outcome
# of the batch.
TraceStages: TypeAlias = Callable[[Manifest, str, int, float, float, Scored], None]


class ScoredGroup(NamedTuple):
    """One group's scores by one version.

    Attributes:
        reply: What a caller of Score gets.
        logits: The raw logits behind it, (responses, heads).
    """

    reply: reward_pb2.ScoreResponse
    logits: Floats


class GroupScorer:
    """Scores groups, each by one version: the version it pins, or the one that serves new requests on admission."""

    def __init__(
        self,
        host: VersionHost[Version],
        tokenizers: TokenizePool,
        batcher: Batching,
        cache: ScoreCache,
        freshness: Freshness,
        shadow: ShadowScorer,
        metrics: ServerMetrics,
        trace_stages: TraceStages | None = None,
    ) -> None:
        self._host = host
        self._tokenizers = tokenizers
        self._batcher = batcher
        self._cache = cache
        self._freshness = freshness
        self._shadow = shadow
        self._trace_stages = trace_stages
        self._canary_away = metrics.canary_away_total.labels(model=host.model)
        self._is_canary_away = False  # as of the last group in its share
        # Looking a label set up costs as much as observing, so it is done here and not once a group.
        self._stage_seconds = {
            lane: tuple(metrics.stage_seconds.labels(stage=stage, lane=lane) for stage in STAGES) for lane in LANES
        }

    async def score(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bounded: bool = True, is_bulk: bool = False
    ) -> ScoredGroup:
        """Score one group, which the caller has validated.

        Args:
            request: The prompt, its responses, and how to score them.
            call: Who asks, and by when.
            is_bounded: Refuse the group if its lane's queue is full.
            is_bulk: The group is one of many of its call, which are tokenized together.

        Raises:
            NoModel: No version is active.
            UnknownVersion: The version asked for is not in memory.
            QueueFull: The queue has no room and ``is_bounded``.
            DeadlinePassed: The work ahead takes longer than the caller waits.
            InvalidRequest: A response was truncated, and the request refuses that.
            NotLoadable: The model failed on the group.
            EngineStuck: The engine runs nothing, or the version's server is away, and with it that of the live one.
            InternalError: The model gave a logit that is not finite.
        """
        key = request.prompt.SerializeToString(deterministic=True)
        pin = request.pin_version if request.HasField("pin_version") else None
        min_version = request.min_version if request.HasField("min_version") else None
        with self._host.lease(pin, min_version, key) as model:
            live = self._live_beside(model, pin, min_version)
            if live is None:
                return await self._scored_by(model, request, key, call, is_bounded=is_bounded, is_bulk=is_bulk)
            if not model.is_away or live.is_away:
                try:
                    group = await self._scored_by(model, request, key, call, is_bounded=is_bounded, is_bulk=is_bulk)
                except EngineStuck:
                    if self._batcher.is_stuck:
                        raise
                else:
                    self._is_canary_away = False
                    return group
        canary = model.manifest
        with self._host.lease(None, min_version, has_canary=False) as model:
            group = await self._scored_by(model, request, key, call, is_bounded=is_bounded, is_bulk=is_bulk)
        self._note_canary_away(canary)
        return group

    def _live_beside(self, model: Version, pin: str | None, min_version: int | None) -> Version | None:
        """Return the live version if this is the canary and the request may be answered by either, else None."""
        live = self._host.live
        if live is None or live is model or pin is not None:
            return None
        return live if min_version is None or int(live.manifest.version) >= min_version else None

    def _note_canary_away(self, canary: Manifest) -> None:
        self._canary_away.inc()
        if not self._is_canary_away:
            self._is_canary_away = True
            log.warning("canary is away, so the live version answers", model=canary.model, version=canary.version)

    async def _scored_by(
        self,
        model: Version,
        request: reward_pb2.ScoreRequest,
        key: bytes,
        call: Call,
        *,
        is_bounded: bool,
        is_bulk: bool,
    ) -> ScoredGroup:
        """Score one group by a version that is leased; as of `score`."""
        lane = lane_of(request)
        started = time.monotonic()
        tokens = estimated_tokens(request, model.manifest.max_length)
        with self._batcher.reserved(
            lane, tokens, call.deadline, call.queue_name, account=call.caller, is_bounded=is_bounded
        ) as granted:
            if granted is not None:
                await granted
            rows = await self._tokenizers.encode(model.encoder, request, call.caller, is_bulk=is_bulk)
        tokenized = time.monotonic()
        if request.truncation == reward_pb2.TRUNCATION_REFUSED:
            _refuse_truncated(rows, model.manifest.max_length)
        scored = await self._scored(model, rows, lane, call)
        reply = reply_of(model, rows, scored.logits)
        self._freshness.answered(model.manifest)
        self._shadow.answered(request, key, model.manifest, rows, [each.score for each in reply.scores])
        stages = (tokenized - started, scored.queue_s, scored.run_s, time.monotonic() - started)
        for histogram, seconds in zip(self._stage_seconds[lane], stages, strict=True):
            histogram.observe(seconds)
        if self._trace_stages is not None:
            self._trace_stages(model.manifest, lane, len(rows), stages[0], stages[-1], scored)
        timings = reply.timings
        timings.tokenize_us, timings.queue_us, timings.run_us = (int(seconds * 1e6) for seconds in stages[:3])
        timings.run_rows, timings.run_tokens = scored.run_rows, scored.run_tokens
        return ScoredGroup(reply, scored.logits)

    async def _scored(self, model: Version, rows: list[Encoded], lane: str, call: Call) -> Scored:
        """Take each row's logits from the cache if the cache serves the lane and has them, else run the row."""
        if not self._cache.serves(lane):
            return await self._batcher.score(model, rows, lane, call.deadline, call.queue_name, account=call.caller)
        keys, known = self._cache.look_up(model, rows, lane)
        missing = [i for i, logits in enumerate(known) if logits is None]
        scored = Scored(np.empty((0, model.manifest.heads), dtype=np.float32))
        if missing:
            asked = [rows[i] for i in missing]
            scored = await self._batcher.score(model, asked, lane, call.deadline, call.queue_name, account=call.caller)
            self._cache.keep(model, [keys[i] for i in missing], scored.logits)
        fresh = iter(scored.logits)
        logits = np.stack([next(fresh) if row is None else row for row in known])
        return replace(scored, logits=logits)


def lane_of(request: reward_pb2.ScoreRequest) -> str:
    """Return the lane that the request waits in; a request that names none is production's."""
    return "trainer" if request.lane == common_pb2.LANE_TRAINER else "production"


def _refuse_truncated(rows: list[Encoded], max_length: int) -> None:
    too_long = [i for i, row in enumerate(rows) if row.truncated]
    if too_long:
        raise InvalidRequest(
            [Violation(f"responses[{i}]", f"has more than {max_length} tokens with its prompt") for i in too_long]
        )
