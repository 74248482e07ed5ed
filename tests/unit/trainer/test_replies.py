"""Replies are paid for once, within a budget that outlives the process, and calls are repeated with patience."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rewardloop.formats.text import Turn
from rewardloop_trainer.judging.asked_chat import AskedChat, Patience
from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.judge import BudgetSpent, JudgeAway, JudgeRefused, Stopped
from rewardloop_trainer.judging.replies import Budget, Replies, Spent, UnusableWork, WorkFile, WorkInUse, forget_replies

DAY = 86_400.0
PATIENT = Patience(attempts=3, first_pause_s=0.0, longest_pause_s=0.01)


def request(text: str, seed: int = 0) -> Request:
    return Request((Turn("user", text),), max_tokens=50, seed=seed)


class Model:
    """A model that fails as it is told, and then repeats what it was asked."""

    name = "m"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def complete(self, request: Request) -> Reply:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return Reply(request.messages[-1].content, "m-1", 20, 5)


def asked(work: WorkFile, model: Model, budget: Budget | None = None, now: float = 0.0) -> tuple[AskedChat, Replies]:
    replies = Replies(work, budget or Budget(), lambda: now)
    return AskedChat(model, replies, PATIENT, threading.Event()), replies


def test_the_same_request_is_asked_once_also_after_a_restart(tmp_path: Path) -> None:
    model = Model()
    work = WorkFile(tmp_path)
    chat, _ = asked(work, model)
    first = chat.complete(request("a"))
    assert chat.complete(request("a")) == first
    chat.complete(request("a", seed=1))
    work.close()
    again = WorkFile(tmp_path)
    assert asked(again, model)[0].complete(request("a")) == first
    again.close()
    assert model.calls == 2


def test_budget_counts_what_was_said_and_outlives_the_process(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    chat, replies = asked(work, Model(), Budget(calls=2))
    chat.complete(request("a"))
    assert replies.spent() == Spent(1, 25)
    work.close()
    work = WorkFile(tmp_path)
    chat, replies = asked(work, Model(), Budget(calls=2))
    chat.complete(request("b"))
    with pytest.raises(BudgetSpent, match="2 of 2 calls of 1970-01-01"):
        chat.complete(request("c"))
    assert chat.complete(request("a")).text == "a"  # what is kept costs nothing
    tomorrow, replies = asked(work, Model(), Budget(calls=2), now=DAY + 1)
    assert tomorrow.complete(request("c")).text == "c"
    assert replies.spent().calls == 1
    work.close()


def test_tokens_are_reserved_before_a_call_so_that_the_budget_is_never_exceeded(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    chat, replies = asked(work, Model(), Budget(tokens=100))
    chat.complete(request("a"))
    with pytest.raises(BudgetSpent, match="tokens"):
        chat.complete(request("b" * 100))
    assert replies.spent() == Spent(1, 25)
    work.close()


def test_failed_attempts_are_calls_and_cost_tokens_only_if_the_model_may_have_written(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    model = Model(JudgeAway("server", "500"), JudgeAway("timeout", "slow"))
    chat, replies = asked(work, model, Budget(calls=100))
    assert chat.complete(request("a")).text == "a"
    assert replies.spent() == Spent(3, 25 + 58)  # 50 to write, 8 for the turn
    work.close()


def test_attempts_end_and_the_call_can_be_made_again_later(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    model = Model(*[JudgeAway("busy", "429", 0.0)] * 3)
    chat, _ = asked(work, model)
    with pytest.raises(JudgeAway):
        chat.complete(request("a"))
    assert chat.complete(request("a")).text == "a"
    work.close()


def test_an_endpoint_that_asks_for_a_long_pause_is_left_for_later_and_a_refusal_is_not_repeated(
    tmp_path: Path,
) -> None:
    work = WorkFile(tmp_path)
    model = Model(JudgeAway("busy", "429", 3600.0), JudgeRefused("400"))
    chat, _ = asked(work, model)
    with pytest.raises(JudgeAway):
        chat.complete(request("a"))
    assert model.calls == 1
    with pytest.raises(JudgeRefused):
        chat.complete(request("a"))
    assert model.calls == 2
    work.close()


def test_an_outage_is_logged_once(tmp_path: Path) -> None:
    away = JudgeAway("unreachable", "connection refused")
    work = WorkFile(tmp_path)
    chat, _ = asked(work, Model(away, away, away, away, away))
    with capture_logs() as logs:
        with pytest.raises(JudgeAway):
            chat.complete(request("a"))
        chat.complete(request("b"))  # after two more failures
        chat._chat.failures = [away]  # type: ignore[attr-defined]
        chat.complete(request("c"))
    assert [each["log_level"] for each in logs] == ["info", "debug", "debug", "debug", "debug", "info"]
    work.close()


def test_nothing_is_asked_once_the_process_is_to_end(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    stop, model = threading.Event(), Model()
    chat = AskedChat(model, Replies(work, Budget()), PATIENT, stop)
    stop.set()
    with pytest.raises(Stopped):
        chat.complete(request("a"))
    assert model.calls == 0
    work.close()


def test_a_directory_is_one_process_s_and_facts_in_it_stay(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    with pytest.raises(WorkInUse):
        WorkFile(tmp_path)
    assert work.hold("rubric/x@1", "abc")
    assert work.hold("rubric/x@1", "abc")
    assert not work.hold("rubric/x@1", "def")
    work.close()
    WorkFile(tmp_path).close()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "work.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UnusableWork, match="cannot be read"):
        WorkFile(tmp_path)


def test_replies_are_forgotten_while_the_file_is_open_and_what_was_spent_is_not(tmp_path: Path) -> None:
    work = WorkFile(tmp_path)
    chat, replies = asked(work, Model())
    chat.complete(request("a secret"))
    spent = replies.spent()
    assert forget_replies(tmp_path) == 1
    assert replies.spent() == spent
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())
    chat.complete(request("a secret"))
    assert replies.spent().calls == spent.calls + 1
    work.close()
