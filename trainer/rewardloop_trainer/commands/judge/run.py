"""The composition root of `rewardloop judge`: opens the parts, judges in rounds, and stops on SIGTERM or SIGINT."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import structlog

from rewardloop.process.metrics_page import serve_metrics
from rewardloop_client import RewardloopError
from rewardloop_trainer.archive.ledger import CorruptSegment
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.commands.judge.labels import Labels, write_labels
from rewardloop_trainer.commands.judge.parts import FilePairs, open_judge, open_pairs
from rewardloop_trainer.commands.judge.report import show, show_quality
from rewardloop_trainer.commands.judge.rounds import JudgedAs, judge_open
from rewardloop_trainer.commands.judge.settings import JudgeSettings
from rewardloop_trainer.evaluation.judge_quality import Judged, JudgeQuality, measure_judge
from rewardloop_trainer.judging.judge import Judge, JudgeUnusable
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.open_model import budget_of
from rewardloop_trainer.judging.pairs.candidates import Candidate
from rewardloop_trainer.judging.pairs.journal import TABLES, Journal
from rewardloop_trainer.judging.pairs.live_pairs import LivePairs
from rewardloop_trainer.judging.pairs.picking import PickRules, Scored, ScorePairs, pick
from rewardloop_trainer.judging.replies import Replies, WorkFile
from rewardloop_trainer.judging.stopping import stop_on_signals
from rewardloop_trainer.policy.rewards import score_groups
from rewardloop_trainer.server_access import open_client

log = structlog.get_logger()

# Exit statuses.
DONE, LEFT, BUDGET_SPENT = 0, 1, 3
_AT_ONCE = 32  # pairs that a reward model scores in one call


class Worker:
    """Judges pairs round by round."""

    def __init__(
        self,
        settings: JudgeSettings,
        judge: Judge,
        pairs: FilePairs | LivePairs,
        journal: Journal,
        replies: Replies,
        metrics: JudgeMetrics,
        stop: threading.Event,
    ) -> None:
        """Take the parts, and connect nothing yet. Raises what wrong addresses raise."""
        self._settings, self._judge, self._metrics, self._stop = settings, judge, metrics, stop
        self._pairs, self._journal, self._replies = pairs, journal, replies
        self._rules = PickRules(settings.shared_share, settings.least_shared, settings.uncertain_share)
        self._client = open_client(settings, settings.server) if settings.server else None
        self._scores = open_client(settings, settings.score_server) if settings.score_server else None
        self._labels = Labels(self._journal, judge.name, _tags_of(settings), self._client, metrics)
        self.quality: JudgeQuality | None = None

    def run(self) -> int:
        """Judge until stopped or, with --once, until nothing is left. Returns the exit status."""
        self._measure()
        try:
            while not self._stop.is_set():
                self._refresh()
                found = self._round()
                if found == "judged":
                    continue
                self._write()
                if self._settings.once:
                    return self._end(found)
                self._stop.wait(self._settings.poll_s)
            return DONE
        finally:
            self._write()

    def _end(self, found: JudgedAs) -> int:
        if found == "budget":
            return BUDGET_SPENT
        if open_pairs := len(self._journal.pairs("open", "judged")):
            log.warning("pairs are left: the same command goes on with them", pairs=open_pairs)
        return LEFT if open_pairs else DONE

    def _write(self) -> None:
        if self._settings.out is not None:
            write_labels(self._settings.out, self._journal, self._judge.name, is_sent=self._client is None)

    def unlabelled(self) -> Iterator[tuple[str, int]]:
        """Yield why pairs have no label, with their numbers."""
        return self._journal.reasons()

    def close(self) -> None:
        """Disconnect."""
        for client in (self._client, self._scores):
            if client is not None:
                client.close()

    def _refresh(self) -> None:
        """Look for new pairs, unless Redis or the ledger is away; then those that are known are judged."""
        try:
            self._pairs.refresh()
        except (*REDIS_FAILURES, CorruptSegment, OSError) as error:
            log.warning("new pairs cannot be read now", error=str(error))
        self._journal.update_people(self._pairs.judged_by_people)

    def _round(self) -> JudgedAs:
        added = self._pick()
        found = judge_open(self._judge, self._journal, self._at_once, self._threads, self._settings.batch, self._stop)
        self._metrics.away.set(found.end == "away")
        self._metrics.budget_spent.set(found.end == "budget")
        sent = self._labels.send()
        if found.judged or sent or added:
            log.info("judged", pairs=found.judged, failed=found.failed, recorded=sent, picked=added, end=found.end)
        self._measure()
        if found.end in ("budget", "away"):
            return found.end
        return "judged" if added or found.judged or found.failed else "nothing"

    @property
    def _threads(self) -> int:
        return self._settings.concurrency if self._settings.endpoint else 1

    @property
    def _at_once(self) -> int:
        return 1 if self._settings.endpoint or self._settings.base else _AT_ONCE

    def _pick(self) -> int:
        """Add pairs to the journal if fewer than a batch are open. Returns how many."""
        room = self._settings.batch - len(self._journal.pairs("open", most=self._settings.batch))
        known = self._journal.keys()
        if self._settings.most_pairs:
            room = min(room, self._settings.most_pairs - len(known))
        if room <= 0:
            return 0
        shared = sum(count for (_, picked), count in self._journal.counts().items() if picked == "shared")
        others = {} if self._is_muted() else self._pairs.others
        score: ScorePairs | None = None if self._scores is None else self._score
        return self._journal.add(pick(self._pairs.judged_by_people, others, known, shared, room, self._rules, score))

    def _score(self, candidates: Sequence[Candidate]) -> Sequence[Scored | None]:
        """Ask the service for scores; nothing is uncertain while it is away."""
        assert self._scores is not None
        prompts = [each.duel.prompt for each in candidates]
        try:
            groups = score_groups(self._scores, prompts, [(each.duel.first, each.duel.second) for each in candidates])
        except RewardloopError as error:
            log.warning("no scores: pairs are picked by lot", error=str(error))
            return [None] * len(candidates)
        return [
            None if a is None or b is None else ((a.score, b.score), (a.uncertainty, b.uncertainty)) for a, b in groups
        ]

    def _is_muted(self) -> bool:
        return self.quality is not None and self.quality.is_muted(self._settings.floor)

    def _measure(self) -> None:
        kept = self._journal.pairs("judged", "sent")
        was_muted = self._is_muted()
        judged = [Judged(each.candidate, each.opinion) for each in kept if each.opinion is not None]
        self.quality = measure_judge(self._judge.name, judged)
        show_quality(self._metrics, self.quality, self._settings.floor)
        self._metrics.show_pairs(self._journal.counts())
        self._metrics.show_budget(budget_of(self._settings), self._replies.spent())
        if self._is_muted() != was_muted:
            says = log.info if was_muted else log.warning
            says("the judge is muted" if not was_muted else "the judge is heard again", weight=self.quality.weight)


def run(settings: JudgeSettings) -> int:
    """Judge until stopped. Returns the exit status, which `command` explains."""
    metrics = JudgeMetrics()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        work = WorkFile(settings.work_dir, TABLES)
        stack.callback(work.close)
        stack.callback(serve_metrics(settings.metrics_port, settings.metrics_host, metrics.registry))
        replies = Replies(work, budget_of(settings))
        pairs = open_pairs(settings)
        judge = open_judge(settings, work, replies, metrics, stop)
        worker = Worker(settings, judge, pairs, Journal(work, judge.name), replies, metrics, stop)
        stack.callback(worker.close)
        log.info("the judge begins", judge=judge.name)
        try:
            status = worker.run()
        except JudgeUnusable as error:
            log.critical("the model cannot be used", reason=str(error))
            return LEFT
        for reason, pairs_left in worker.unlabelled():
            log.warning("pairs have no label", reason=reason, pairs=pairs_left)
        show(judge.name, worker.quality, settings.floor, settings.output)
        if status == BUDGET_SPENT:
            log.warning("the budget of the day is spent: the same command goes on tomorrow")
        return status


def _tags_of(settings: JudgeSettings) -> dict[str, str]:
    if settings.reward_base or settings.reward_version:
        return {}
    return {"judge_votes": str(settings.votes), "judge_temperature": f"{settings.temperature:g}"}
