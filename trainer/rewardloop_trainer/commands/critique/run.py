"""The composition root of `rewardloop critique`: answers -> critiques and revisions -> files and signals -> counts.

Everything that a model says is kept in the work file, so that a command that was killed comes to the same answers again
without asking for them again, and signals have ids made of what they say: a service records each once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import structlog
from rich.console import Console
from rich.progress import Progress

from rewardloop.formats.messages import prompt_of
from rewardloop.process.metrics_page import serve_metrics
from rewardloop_client import RewardloopClient, RewardloopError
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.commands.critique.files import Asked, read_asked, show, write_all
from rewardloop_trainer.commands.critique.settings import CritiqueSettings
from rewardloop_trainer.commands.critique.signals import signals_of
from rewardloop_trainer.judging.chat import Chat
from rewardloop_trainer.judging.constitution import Constitution, UnusableConstitution
from rewardloop_trainer.judging.judge import BudgetSpent, JudgeAway, JudgeRefused, JudgeUnusable, Stopped
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.open_model import budget_of, open_chat, prepare_torch
from rewardloop_trainer.judging.replies import Replies, WorkFile
from rewardloop_trainer.judging.revision import Asking, Revised, answer, count_principles, revise
from rewardloop_trainer.judging.rubric import SHIPPED
from rewardloop_trainer.judging.stopping import stop_on_signals
from rewardloop_trainer.server_access import open_client

log = structlog.get_logger()

# Exit statuses.
DONE, LEFT, BUDGET_SPENT = 0, 1, 3
_BATCH = 100
_POLL_S = 0.5

End: TypeAlias = Literal["done", "budget", "away", "stopped"]


@dataclass(slots=True)
class Outcome:
    """What was revised, by the place of the prompt in the file, and how it ended."""

    revised: dict[int, Revised]
    refused: int = 0
    end: End = "done"


def run(settings: CritiqueSettings) -> int:
    """Revise all answers. Returns the exit status, which `command` explains."""
    if settings.base:
        prepare_torch(settings.torch_threads)
    assert settings.prompts is not None
    asked = list(islice(read_asked(SourceFile.of(settings.prompts)), settings.most or None))
    path = settings.constitution or SHIPPED.with_name("harmless.toml")
    constitution, metrics = Constitution.read(path), JudgeMetrics()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        work = WorkFile(settings.work_dir)
        stack.callback(work.close)
        if not work.hold(f"constitution/{constitution.label}", constitution.digest):
            had = f"version {constitution.version} had other principles in {settings.work_dir}"
            raise UnusableConstitution(f"{path}: {had}: give it another version")
        client = open_client(settings, settings.server) if settings.server else None
        if client is not None:
            stack.callback(client.close)
        stack.callback(serve_metrics(settings.metrics_port, settings.metrics_host, metrics.registry))
        replies = Replies(work, budget_of(settings))
        chat = open_chat(settings, replies, stop, lambda outcome: metrics.calls.labels(outcome=outcome).inc())
        try:
            found = _revise_all(settings, chat, constitution, asked, client, metrics, stop)
        except JudgeUnusable as error:
            log.critical("the model cannot be used", reason=str(error))
            return LEFT
        metrics.show_budget(budget_of(settings), replies.spent())
        return _conclude(settings, chat.name, constitution, found, len(asked), client)


def _revise_all(
    settings: CritiqueSettings,
    chat: Chat,
    constitution: Constitution,
    asked: Sequence[Asked],
    client: RewardloopClient | None,
    metrics: JudgeMetrics,
    stop: threading.Event,
) -> Outcome:
    """Revise the answers, several at once, until all are or the budget, the model or a person ends it."""
    asking = Asking(settings.rounds, settings.max_tokens, settings.temperature, settings.seed, settings.prefers)

    def one(each: Asked) -> Revised:
        first = each.answer
        if first is None:
            first = _of_policy(client, each, settings) if client and settings.answers == "policy" else None
        return revise(chat, constitution, each.prompt, first or answer(chat, each.prompt, asking), asking)

    found = Outcome({})
    threads = settings.concurrency if settings.endpoint else 1
    running: dict[Future[Revised], int] = {}
    left = iter(enumerate(asked))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="critique")
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("revised", total=len(asked))
            while True:
                may_go_on = found.end == "done" and not stop.is_set()
                more = islice(left, threads - len(running)) if may_go_on else ()
                running |= {pool.submit(one, each): i for i, each in more}
                if not running:
                    break
                done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    _take(future, running.pop(future), found, metrics)
                    progress.advance(task)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if stop.is_set() and found.end == "done" and len(found.revised) + found.refused < len(asked):
        found.end = "stopped"
    return found


def _of_policy(client: RewardloopClient, asked: Asked, settings: CritiqueSettings) -> str:
    """Return the live policy's answer. Raises JudgeAway if the service gives none."""
    try:
        said = client.generate(prompt_of(asked.prompt), seed=settings.seed, max_new_tokens=settings.max_tokens)
    except RewardloopError as error:
        raise JudgeAway("server", f"the policy gives no answer: {error}") from error
    if not (text := said.candidates[0].text.strip()):
        raise JudgeRefused("the policy's answer is empty")
    return text


def _take(future: Future[Revised], place: int, found: Outcome, metrics: JudgeMetrics) -> None:
    try:
        revised = future.result()
    except BudgetSpent as error:
        log.info("the budget is spent", reason=str(error))
        found.end = "budget"
    except Stopped:
        found.end = "stopped"
    except JudgeAway as error:
        log.warning("the model gives no usable reply", error=str(error))
        found.end = "away"
    except JudgeRefused as error:
        log.warning("an answer cannot be revised", error=str(error))
        found.refused += 1
    else:
        found.revised[place] = revised
        for step in revised.steps:
            metrics.critiques.labels(principle=step.principle.id, outcome=step.outcome).inc()


def _conclude(
    settings: CritiqueSettings,
    model: str,
    constitution: Constitution,
    found: Outcome,
    asked: int,
    client: RewardloopClient | None,
) -> int:
    """Write and record what was revised, and show what each principle did. Returns the exit status."""
    revised = [found.revised[place] for place in sorted(found.revised)]
    counts = count_principles(constitution, revised)
    write_all(settings.out, model, constitution, revised, counts)
    refused = _record(client, model, constitution, revised) if client else 0
    show(settings.out, settings.output, constitution, revised, counts, found.refused)
    if found.end != "done":
        left = asked - len(revised) - found.refused
        log.warning("answers are left: the same command goes on with them", left=left, why=found.end)
    return BUDGET_SPENT if found.end == "budget" else LEFT if found.end != "done" or refused else DONE


def _record(client: RewardloopClient, model: str, constitution: Constitution, revised: Sequence[Revised]) -> int:
    """Record all signals, and return how many the service did not take."""
    events = [event for each in revised for event in signals_of(each, model, constitution)]
    refused = 0
    for start in range(0, len(events), _BATCH):
        try:
            outcomes = client.record_batch(events[start : start + _BATCH])
        except RewardloopError as error:
            log.error("the service takes no signals: the same command sends them again", error=str(error))
            return len(events) - start
        for outcome in outcomes:
            if isinstance(outcome, RewardloopError):
                refused += 1
                log.warning("the service refuses a signal", reason=str(outcome))
    return refused
