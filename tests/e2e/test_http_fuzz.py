"""5,000 requests that schemathesis makes from the door's own schema, right ones and wrong ones: none finds a bug."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import GenerationMode
from support.deployments_with_http import http_deployment

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

REQUESTS = 5000


def test_no_request_finds_a_bug(tmp_path: Path) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    bugs: list[str] = []
    with http_deployment(
        tmp_path, "--generate-timeout-s=10", "--token-requests-per-s=0", policy_args="--max-new-tokens 3"
    ) as up:
        schema = schemathesis.openapi.from_url(f"{up.url}/openapi.json")
        headers = {"authorization": f"Bearer {up.tokens['shop']}"}
        operations = [found.ok() for found in schema.get_all_operations()]
        rounds = [(each, mode) for each in operations for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
        posts = [(each, mode) for each, mode in rounds if each.method.upper() == "POST"]
        for operation, mode in rounds:
            count = 1 + REQUESTS // len(posts) if (operation, mode) in posts else 10

            def ask(case: Any) -> None:
                reply = case.call(headers=headers, timeout=30)
                statuses[case.operation.label, reply.status_code] += 1
                if reply.status_code in (500, 501, 502):
                    bugs.append(f"{case.as_curl_command()}\n{reply.text}")

            settings = hypothesis.settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            try:
                settings(given(case=operation.as_strategy(generation_mode=mode))(ask))()
            except (hypothesis.errors.Unsatisfiable, schemathesis.errors.InvalidSchema):
                assert operation.method.upper() == "GET"  # which has no wrong form
        assert not bugs, bugs[:3]
        assert " 500" not in (tmp_path / "data" / "logs" / "gateway.log").read_text()
        assert "request failed" not in (tmp_path / "data" / "logs" / "gateway.log").read_text()
    print(sum(statuses.values()), dict(statuses))
    assert sum(statuses.values()) >= 0.9 * REQUESTS  # small sets of forms have fewer examples
    assert {200, 400} <= {status for _, status in statuses}
