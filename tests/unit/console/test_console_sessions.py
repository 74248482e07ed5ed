"""Whose session ends when there are too many."""

from __future__ import annotations

from rewardloop_client import Identity
from rewardloop_console.sessions import Sessions

OPEN = Identity("", frozenset(), True)
LABELLER = Identity("shop", frozenset({"label"}), False)


def test_browsers_without_a_token_end_nobodys_session() -> None:
    sessions = Sessions(3600)
    signed_in = sessions.sign_in("rlt_a", LABELLER, "Anna", "anna")
    own = sessions.of(sessions.sign_in("", OPEN, "me", "me").key)
    assert own is not None
    for _ in range(10_001):
        sessions.sign_in("", OPEN, "me", "me")
    assert sessions.of(signed_in.key) is not None
    assert sessions.of(own.key) is not None


def test_one_person_who_signs_in_again_and_again_ends_only_own_sessions() -> None:
    sessions = Sessions(3600)
    anna = sessions.sign_in("rlt_a", LABELLER, "Anna", "anna")
    bobs = [sessions.sign_in("rlt_a", LABELLER, "Bob", "bob") for _ in range(150)]
    assert sessions.of(anna.key) is not None
    assert [sessions.of(each.key) is not None for each in bobs] == [False] * 50 + [True] * 100


def test_a_key_of_another_purpose_is_no_session() -> None:
    sessions = Sessions(3600)
    key = sessions.sign_in("rlt_a", LABELLER, "Anna", "anna").key
    assert sessions.key_of(sessions.signed(key)) == key
    assert sessions.key_of(f"{key}.{sessions.mac(b'oidc-state', key)}") is None
