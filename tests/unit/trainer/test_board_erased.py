"""After an erasure the board has nothing of the person, and rounds that began before it bring nothing back."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from rewardloop.formats.erasing.erasures import Erasure, Erasures, digest_of, new_key
from rewardloop.formats.signals import key_of
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.reports.parts import Sample, Side
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.trainer_state import RoundState

ERASED_AT = 1_000.0
BEFORE = RoundState(1, "training", "", "9-0", 3, 3, 1, started_at=ERASED_AT - 60)
AFTER = replace(BEFORE, number=2, started_at=ERASED_AT + 60)


def erasures() -> Erasures:
    """Of the person "ann", one of whose signals is "shop"'s event "e-ann"."""
    name, secret = new_key()
    asked = Erasure("1", "annotator", digest_of(secret, "annotator", "ann").hex(), name, None, ERASED_AT)
    return Erasures({name: secret}, [asked], {digest_of(secret, "event", key_of("shop", "e-ann"))})


def sample(event_id: str) -> Sample:
    return Sample(f"question of {event_id}", [Side("over", "an answer")], signal=event_id and key_of("shop", event_id))


SAMPLES = [sample("e-ann"), sample("e-bob"), sample("")]


def crowd() -> operations_pb2.Crowd:
    return operations_pb2.Crowd(people=[{"caller": "shop", "annotator_id": each} for each in ("ann", "bob")])


def told(state: RoundState) -> Board:
    board = Board(lambda: ERASED_AT)
    board.lead("t1")
    board.reached("reward", state)
    board.refused("reward", state.number, [], SAMPLES)
    board.knows(crowd(), state.started_at)
    return board


def shown(board: Board) -> tuple[list[str], list[str]]:
    """The events of the examples, and the people."""
    rounds, people = board.take_changed()
    examples = [each.event_id for found in rounds.values() for each in found.examples]
    return examples, [each.annotator_id for each in people.people] if people else []


def test_what_waits_on_the_board_is_erased() -> None:
    board = told(BEFORE)
    board.erase(erasures())
    assert shown(board) == (["e-bob"], ["bob"])


def test_round_that_began_before_brings_nothing_back() -> None:
    board = told(BEFORE)
    board.erase(erasures())
    shown(board)
    board.refused("reward", 1, [], SAMPLES)
    board.knows(crowd(), BEFORE.started_at)
    assert shown(board) == (["e-bob"], ["bob"])


def test_round_that_began_later_shows_who_has_spoken_again() -> None:
    board = told(BEFORE)
    board.erase(erasures())
    shown(board)
    board.reached("reward", AFTER)
    board.refused("reward", 2, [], SAMPLES)
    board.knows(crowd(), AFTER.started_at)
    board.erase(erasures())
    assert shown(board) == (["e-bob", ""], ["ann", "bob"])


def test_rounds_of_the_process_before_are_erased() -> None:
    before = told(BEFORE)
    rounds, _ = before.take_changed()
    board = Board()
    board.remember(rounds.values())
    board.lead("t1")
    board.erase(erasures())
    board.reached("reward", BEFORE)
    assert shown(board)[0] == ["e-bob"]


@pytest.mark.parametrize("is_put_back", [True, False])
def test_erasure_waits_for_what_is_being_published(is_put_back: bool) -> None:
    board = told(BEFORE)
    with board.publishing:
        rounds, people = board.take_changed()
        erasing = threading.Thread(target=board.erase, args=(erasures(),))
        erasing.start()
        erasing.join(0.05)
        assert erasing.is_alive()
        if is_put_back:
            board.put_back(rounds, people)
    erasing.join(10)
    assert shown(board) == ((["e-bob"], ["bob"]) if is_put_back else ([], []))
