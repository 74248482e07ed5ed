"""One round of judging: the open pairs are given to the judge, as many at once as it takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog

from rewardloop_trainer.judging.judge import BudgetSpent, Judge, JudgeAway, Opinion, Stopped
from rewardloop_trainer.judging.pairs.journal import Journal, KeptPair

log = structlog.get_logger()

JudgedAs: TypeAlias = Literal["judged", "nothing", "budget", "away"]

# So many calls in a row without a usable reply end a round.
_MOST_AWAY = 10
_POLL_S = 0.5


@dataclass(slots=True)
class Round:
    """What a round did, and how it ended: "judged", or "budget" or "away" with pairs left open."""

    judged: int = 0
    failed: int = 0
    away: int = 0
    end: JudgedAs = "judged"


def judge_open(judge: Judge, journal: Journal, at_once: int, threads: int, most: int, stop: threading.Event) -> Round:
    """Judge the open pairs of the journal, those that people judged first.

    Every opinion is kept as soon as it is there. No new call is made after the first one that says that the budget is
    spent, nor after several in a row without a usable reply, nor once the process is asked to end.

    Args:
        judge: The judge.
        journal: Its pairs.
        at_once: Pairs of one call.
        threads: Calls at once.
        most: Most pairs of the round.
        stop: Set when the process is asked to end.

    Raises:
        JudgeUnusable: If the model refuses every call.
    """
    found = Round()
    pairs = journal.pairs("open", most=most)
    waiting = [pairs[i : i + at_once] for i in range(0, len(pairs), at_once)]
    waiting.reverse()
    in_a_row = 0
    running: dict[Future[list[Opinion | None]], Sequence[KeptPair]] = {}
    pool = ThreadPoolExecutor(threads, thread_name_prefix="judge")
    try:
        while running or waiting:
            goes_on = found.end == "judged" and in_a_row < _MOST_AWAY and not stop.is_set()
            if not goes_on:
                waiting.clear()
            while waiting and len(running) < threads:
                part = waiting.pop()
                running[pool.submit(judge.compare, [each.candidate.duel for each in part])] = part
            done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for each in done:
                in_a_row = _take(each, running.pop(each), journal, found, in_a_row)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if found.away and found.end == "judged":
        found.end = "away"
    return found


def _take(
    done: Future[list[Opinion | None]], part: Sequence[KeptPair], journal: Journal, found: Round, in_a_row: int
) -> int:
    """Keep what a call gave, and return how many calls in a row had no usable reply."""
    try:
        opinions = done.result()
    except BudgetSpent as error:
        log.info("the budget is spent", reason=str(error))
        found.end = "budget"
        return in_a_row
    except Stopped:
        return in_a_row
    except JudgeAway as error:
        log.warning("the model gives no usable reply", error=str(error))
        found.away += len(part)
        return in_a_row + 1
    for pair, opinion in zip(part, opinions, strict=True):
        if opinion is None:
            journal.failed(pair.key, "no opinion")
            found.failed += 1
        else:
            journal.judged(pair.key, opinion)
            found.judged += 1
    return 0
