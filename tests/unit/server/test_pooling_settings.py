"""What names the servers elsewhere is checked at start, and a key is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rewardloop_server.pooling.dialects import DIALECTS, NoLogits
from rewardloop_server.scoring_parts import pooling_endpoints
from rewardloop_server.settings import ServeSettings


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:eight", "http://host:99999"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="pooling_urls"):
        ServeSettings(pooling_urls=[url])


@pytest.mark.parametrize("text", [b"sk-first\nsk-second\n", b"sk first", "sk-schlüssel".encode(), b"sk-\xff", b"sk-\0"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(text)
    with pytest.raises(SystemExit) as refused:
        pooling_endpoints(ServeSettings(pooling_urls=["http://127.0.0.1:8000"], pooling_api_key_file=file))
    assert "--pooling-api-key-file" in str(refused.value)
    assert "sk" not in str(refused.value).replace(str(file), "")


def test_a_number_above_all_others_in_a_reply_is_no_logit() -> None:
    with pytest.raises(NoLogits):
        DIALECTS["sglang"].pooled([{"embedding": [10**400]}], 1)
