"""What names the servers elsewhere is checked at start, and a key is never shown."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rewardloop_server.pooling.dialects import DIALECTS, NoLogits
from rewardloop_server.settings import ServeSettings


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:eight", "http://host:99999"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="pooling_urls"):
        ServeSettings(pooling_urls=[url])


def test_a_number_above_all_others_in_a_reply_is_no_logit() -> None:
    with pytest.raises(NoLogits):
        DIALECTS["sglang"].pooled([{"embedding": [10**400]}], 1)
