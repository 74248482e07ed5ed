"""Requests that schemathesis makes from the door's own schema, right ones and wrong ones: none finds a bug.

A thousand go to the door with the client's fake behind it, and some to a whole deployment; `FUZZ_REQUESTS=5000`
sends five times as many.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import GenerationMode
from support.deployments_with_http import http_deployment

from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.serving import server
from rewardloop_gateway.settings import GatewaySettings

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
BUGS = (500, 501, 502)


@contextmanager
def door_before_the_fake() -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = server(GatewaySettings(listen=f"127.0.0.1:{port}"), FakeRewardloop().as_async(), listening)
    thread = threading.Thread(target=asyncio.run, args=(serving.serve(),))
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serving.should_exit = True
        thread.join()


def fuzzed(url: str, count: int, token: str) -> Counter[tuple[str, int]]:
    """Send about ``count`` requests. Returns how many got which status, by route. Fails for a status of BUGS."""
    statuses: Counter[tuple[str, int]] = Counter()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", timeout=120)
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = [each for each in operations if each.method.upper() == "POST"]
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def ask(case: Any) -> None:
                reply = case.call(headers={"authorization": f"Bearer {token}"}, timeout=60)
                statuses[case.operation.label, reply.status_code] += 1
                assert reply.status_code not in BUGS, reply.text

            settings = hypothesis.settings(
                max_examples=1 + count // (2 * len(posts)) if operation in posts else 10,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            try:
                settings(given(case=operation.as_strategy(generation_mode=mode))(ask))()
            except (hypothesis.errors.Unsatisfiable, schemathesis.errors.InvalidSchema):
                assert operation not in posts  # the others have no wrong form
    print(sum(statuses.values()), "requests:", dict(statuses))
    return statuses


def test_no_request_finds_a_bug_of_the_door() -> None:
    with door_before_the_fake() as url:
        statuses = fuzzed(url, REQUESTS, "rlt_fuzz")
    assert sum(statuses.values()) >= 0.95 * REQUESTS
    assert {200, 400} <= {status for _, status in statuses}


def test_no_request_finds_a_bug_of_a_deployment(tmp_path: Path) -> None:
    with http_deployment(tmp_path, "--generate-timeout-s=30", policy_args="--max-new-tokens 3") as up:
        statuses = fuzzed(up.url, REQUESTS // 4, up.tokens["shop"])
        assert "request failed" not in (tmp_path / "data" / "logs" / "gateway.log").read_text()
    assert {200, 400} <= {status for _, status in statuses}
