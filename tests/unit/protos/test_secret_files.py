"""A file of a key, a token or a password that cannot be used is refused by whoever reads it, without being shown."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from rewardloop.formats.signatures import Signer, TrustedKeys
from rewardloop.process.secret_files import UnusableSecret, as_secret, read_secret
from rewardloop_client import Access, InvalidAccess
from rewardloop_gateway.serving import console_options
from rewardloop_gateway.settings import GatewaySettings
from rewardloop_local.redis_server.door import door_of
from rewardloop_server.doors.callers import BadFile, read_table
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.scoring_parts import pooling_endpoints
from rewardloop_server.settings import ServeSettings
from rewardloop_trainer.chat_settings import AskedModel
from rewardloop_trainer.policy.online.open_sampler import _key
from rewardloop_trainer.policy.online_settings import VllmSettings

SECRET = "s3cr3t"

# Two words, a word with a sign of its own, what is no text, and what ends a text early.
MALFORMED = (
    f"{SECRET}-first\n{SECRET}-second\n".encode(),
    f"{SECRET} of two words".encode(),
    f"{SECRET}-schlüssel".encode(),
    f"{SECRET}-\xff".encode("latin-1"),
    f"{SECRET}-\0".encode(),
)


def _of_pooling(file: Path) -> object:
    return pooling_endpoints(ServeSettings(pooling_urls=["http://127.0.0.1:8000"], pooling_api_key_file=file))


def _of_chat(file: Path) -> object:
    return AskedModel(endpoint="https://host/v1", model="judge", api_key_file=file).key()


def _of_a_client(file: Path) -> object:
    return Access(token=file).metadata()


def _of_generations(file: Path) -> object:
    return asyncio.run(GenerationKeys(Redis(), str(file)).new_id())


def _of_callers(file: Path) -> object:
    return read_table(file)


def _of_a_sampler(file: Path) -> object:
    return _key(VllmSettings(api_key_file=file))


READERS: Mapping[str, Callable[[Path], object]] = {
    "pooling": _of_pooling,
    "chat": _of_chat,
    "client": _of_a_client,
    "sampler": _of_a_sampler,
    "generations": _of_generations,
    "callers": _of_callers,
    "signer": Signer.from_file,
    "trusted": TrustedKeys.from_file,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", MALFORMED)
def test_what_is_no_secret_is_refused_without_being_shown(reader: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises((OSError, ValueError, SystemExit, BadFile, RuntimeError)) as refused:
        READERS[reader](file)
    assert SECRET not in "".join(traceback.format_exception(refused.value)).replace(__file__, "")


def test_a_key_of_the_environment_is_held_to_the_same_form() -> None:
    asked = AskedModel(endpoint="https://host/v1", model="judge", api_key=SecretStr(f" {SECRET} "))
    assert asked.key() == SECRET
    with pytest.raises(UnusableSecret, match=r"^api_key does not hold one word") as refused:
        asked.model_copy(update={"api_key": SecretStr(f"{SECRET}\nmore")}).key()
    assert SECRET not in str(refused.value)


def test_the_secret_of_the_console_may_have_spaces_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    settings = GatewaySettings(
        console=True,
        console_url="https://console",
        oidc_issuer="https://issuer",
        oidc_client_id="console",
        oidc_client_secret_file=file,
        oidc_tokens=[f"people=view={tmp_path / 'token'}"],
    )
    file.write_text(f"{SECRET} of words\n")
    oidc = console_options(settings).oidc
    assert oidc is not None
    assert oidc.client_secret == f"{SECRET} of words"
    file.write_bytes(MALFORMED[3])
    with pytest.raises(SystemExit, match="is not a text in UTF-8") as refused:
        console_options(settings)
    assert SECRET not in str(refused.value)


def test_the_password_of_the_local_redis_is_not_shown(tmp_path: Path) -> None:
    assert door_of(tmp_path) is None
    (tmp_path / "password").write_bytes(MALFORMED[3])
    with pytest.raises(UnusableSecret) as refused:
        door_of(tmp_path)
    assert SECRET not in str(refused.value)


def test_white_space_around_a_secret_is_no_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(f"\n {SECRET}\t\n")
    assert read_secret(file) == SECRET
    assert read_secret(None) == ""
    assert as_secret(f"{SECRET}\r\n", "here") == SECRET


def test_a_token_that_is_being_replaced_leaves_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "token"
    access = Access(token=file)
    file.write_text(SECRET)
    assert access.metadata() == (("authorization", f"Bearer {SECRET}"),)
    file.write_bytes(b"half of a \xff")
    assert access.metadata() == (("authorization", f"Bearer {SECRET}"),)
    with pytest.raises(InvalidAccess, match=r"no token in .*: No such file"):
        Access(token=tmp_path / "missing").metadata()
