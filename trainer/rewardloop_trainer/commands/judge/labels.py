"""The judge's opinions as ordinary signals with the source llm_judge: recorded by a service, or written to a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from rewardloop.formats.messages import message_of, prompt_of, tools_of
from rewardloop.v1 import feedback_pb2
from rewardloop_client import (
    AlreadyExists,
    Feedback,
    InvalidRequest,
    Overloaded,
    RewardloopClient,
    RewardloopError,
    Unavailable,
    UnknownGeneration,
)
from rewardloop_client._feedback import Context
from rewardloop_trainer.judging.judge import Opinion
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.pairs.candidates import tags_of
from rewardloop_trainer.judging.pairs.journal import Journal, KeptPair
from rewardloop_trainer.learning.write_whole import write_whole_file

log = structlog.get_logger()

_BATCH = 100


class Labels:
    """Sends what is judged and not yet recorded."""

    def __init__(
        self,
        journal: Journal,
        judge: str,
        tags: Mapping[str, str],
        client: RewardloopClient | None,
        metrics: JudgeMetrics,
    ) -> None:
        """Take the journal, the judge's name, tags of every signal, and the service; without one nothing is sent."""
        self._journal, self._judge, self._tags, self._client, self._metrics = journal, judge, tags, client, metrics
        self._digest = hashlib.sha256(judge.encode()).hexdigest()[:16]

    def send(self) -> int:
        """Record signals until none is left or the service does not take them now. Returns how many it took."""
        taken = 0
        while self._client is not None:
            pairs = self._journal.pairs("judged", most=_BATCH)
            done = self._send(self._client, pairs)
            taken += done
            if not pairs or done < len(pairs):
                break
        return taken

    def _send(self, client: RewardloopClient, pairs: list[KeptPair]) -> int:
        """Record some signals, and return how many have another state now."""
        if not pairs:
            return 0
        outcomes = self._record(client, [self.event(each) for each in pairs])
        # A log of generations forgets: the signal then says itself what was judged.
        expired = [i for i, each in enumerate(outcomes) if isinstance(each, UnknownGeneration)]
        again = self._record(client, [self.event(pairs[i], by_generation=False) for i in expired])
        for i, outcome in zip(expired, again, strict=True):
            outcomes[i] = outcome
        recorded, done = [], 0
        for pair, outcome in zip(pairs, outcomes, strict=True):
            if isinstance(outcome, Overloaded | Unavailable):
                continue  # it is sent again later
            if not isinstance(outcome, RewardloopError) or isinstance(outcome, AlreadyExists):
                recorded.append(pair.key)
                self._metrics.signals.labels(outcome="recorded").inc()
            elif isinstance(outcome, InvalidRequest | UnknownGeneration):
                self._journal.failed(pair.key, f"refused: {outcome.reason}")
                self._metrics.signals.labels(outcome="refused").inc()
                log.warning("the service refuses a signal", reason=str(outcome))
                done += 1
            else:
                log.warning("the service takes no signals now", error=str(outcome))
                break
        self._journal.sent(recorded)
        return done + len(recorded)

    def _record(self, client: RewardloopClient, events: list[feedback_pb2.FeedbackEvent]) -> list[Any]:
        if not events:
            return []
        try:
            return list(client.record_batch(events))
        except RewardloopError as error:
            return [error] * len(events)

    def event(self, pair: KeptPair, *, by_generation: bool = True) -> feedback_pb2.FeedbackEvent:
        """Return the signal of a judged pair."""
        opinion, candidate = pair.opinion, pair.candidate
        assert opinion is not None
        tags = {**self._tags, "judge_picked": pair.picked, "judge_model": opinion.model, **_said(opinion)}
        context: Context = {
            "event_id": pair.event_id(self._digest),
            "annotator_id": self._judge,
            "source": "llm_judge",
            "tags": tags_of(tags),
        }
        first, second = 0, 1
        if by_generation and candidate.generation_id:
            context["generation_id"] = candidate.generation_id
            first, second = candidate.first, candidate.second
        else:
            context["prompt"] = prompt_of(candidate.duel.prompt)
            context["responses"] = [candidate.duel.first, candidate.duel.second]
        if opinion.choice == "tie":
            return Feedback.tie(first=first, second=second, **context)
        chosen, rejected = (first, second) if opinion.choice == "first" else (second, first)
        return Feedback.choice(chosen=chosen, rejected=rejected, **context)


def write_labels(path: Path, journal: Journal, judge: str, *, is_sent: bool) -> None:
    """Write all opinions as rows of `rewardloop feedback import`; the file appears whole.

    Args:
        path: The JSONL file.
        journal: The pairs.
        judge: The judge's name.
        is_sent: Whether the file is all that becomes of them, so that they count as recorded.
    """
    kept = journal.pairs("judged", "sent")
    write_whole_file(path, "".join(json.dumps(_row(each, judge), ensure_ascii=False) + "\n" for each in kept))
    if is_sent:
        journal.sent(each.key for each in kept)


def _row(pair: KeptPair, judge: str) -> dict[str, Any]:
    opinion, duel = pair.opinion, pair.candidate.duel
    assert opinion is not None
    tools, said = tools_of(duel.prompt)
    row: dict[str, Any] = {
        "prompt": [message_of(turn) for turn in said],
        "responses": [duel.first, duel.second],
        "annotations": [{"annotator": judge, "choice": opinion.annotation}],
        "index_base": 0,
        "probability": opinion.probability,
        "orders_agree": opinion.agrees,
        "picked": pair.picked,
        "model": opinion.model,
    }
    return {**row, "tools": tools} if tools else row


def _said(opinion: Opinion) -> dict[str, str]:
    confidence = max(opinion.probability, 1 - opinion.probability)
    return {"judge_orders": "agree" if opinion.agrees else "differ", "judge_confidence": f"{confidence:.1f}"}
