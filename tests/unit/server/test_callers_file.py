"""The callers' file: what it may say, and what it says about what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardloop.formats.tokens import PREFIX, new_token, token_digest
from rewardloop_server.calls.errors import ExpiredCredentials, NoCredentials, WrongCredentials
from rewardloop_server.doors.callers import Callers, Credential, read_table
from rewardloop_server.doors.quotas import Quota
from rewardloop_server.doors.reload import BadFile

HASH = "a" * 64
TOKEN = f'[[token]]\ncaller = "shop"\nsha256 = "{HASH}"\nroles = ["score"]\n'


def file(directory: Path, text: str) -> Path:
    path = directory / "callers.toml"
    path.write_text(text)
    return path


def test_file_of_the_documentation_is_read(tmp_path: Path) -> None:
    from rewardloop_server.doors import callers

    example = (callers.__doc__ or "").split("quotas.\n", 1)[1].rsplit("\nA caller may", 1)[0]
    table = read_table(file(tmp_path, example))
    (token,) = table.tokens.values()
    assert (token.caller, token.roles) == ("shop", {"score", "feedback"})
    assert table.certificates["ops.internal"] == Credential("operators", "ops.internal", frozenset({"admin"}))
    assert table.quotas["shop"] == Quota(100, 50_000, 1_000_000, 64)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[[token]", "callers.toml"),
        (TOKEN.replace("score", "root"), "token.0.roles"),
        (TOKEN.replace(HASH, "abc"), "token.0.sha256"),
        (TOKEN.replace(HASH, HASH.upper()), "token.0.sha256"),
        (TOKEN.replace('["score"]', "[]"), "token.0.roles"),
        (TOKEN.replace("shop", "the shop"), "token.0.caller"),
        (TOKEN + "expires = 5\n" + TOKEN, "callers.toml"),
        (TOKEN + "\n" + TOKEN, "same sha256"),
        (TOKEN + "note = 1\n", "token.0.note"),
        ("[quota.shop]\nrequests_per_s = 0\n", "quota.shop.requests_per_s"),
        ("[quota.shop]\nrequest_per_s = 1\n", "quota.shop.request_per_s"),
        ("[tokens]\n", "tokens"),
    ],
)
def test_wrong_file_is_refused_by_the_name_of_what_is_wrong(text: str, names: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=names) as refused:
        read_table(file(tmp_path, text))
    assert HASH not in str(refused.value)


def test_all_that_is_wrong_in_a_file_is_named_at_once(tmp_path: Path) -> None:
    text = TOKEN.replace('caller = "shop"\n', "") + '[[certificate]]\ncaller = "shop"\nname = "n"\nroles = ["x"]\n'
    with pytest.raises(BadFile, match=r"token\.0\.caller: Field required; certificate\.0\.roles\.0: ") as refused:
        read_table(file(tmp_path, text))
    assert HASH not in str(refused.value)


def test_credentials_are_found_or_say_why_not(tmp_path: Path) -> None:
    good, late, zoned = new_token(), new_token(), new_token()
    text = TOKEN.replace(HASH, token_digest(good))
    text += TOKEN.replace(HASH, token_digest(late)) + "expires = 2020-01-01T00:00:00Z\n"
    text += TOKEN.replace(HASH, token_digest(zoned)) + "expires = 2999-01-01T00:00:00\n"
    callers = Callers(file(tmp_path, text))
    assert isinstance(callers.by_token(good), Credential)
    assert isinstance(callers.by_token(zoned), Credential)
    assert isinstance(callers.by_token(late), ExpiredCredentials)
    assert isinstance(callers.by_token(new_token()), WrongCredentials)
    assert isinstance(callers.by_token(token_digest(good)), WrongCredentials)  # the hash itself opens nothing
    assert isinstance(callers.by_certificate(["shop"]), NoCredentials)


def test_own_quota_goes_before_that_of_everybody_else(tmp_path: Path) -> None:
    callers = Callers(file(tmp_path, '[quota."*"]\nconcurrent = 1\n[quota.shop]\nconcurrent = 2\n'))
    assert callers.allowance("shop").quota.concurrent == 2
    assert callers.allowance("other").quota.concurrent == 1
    assert callers.allowance("other") is callers.allowance("other") is not callers.allowance("third")


def test_tokens_are_long_random_and_marked() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith(PREFIX) and len(token) == len(PREFIX) + 43 for token in tokens)
