"""The official `openai` client in JavaScript, and the script for pages, against a real `rewardloop up`."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.deployments_with_http import HttpDeployment, http_deployment
from support.npm_packages import install
from support.tools import tool

pytestmark = pytest.mark.long

HERE = Path(__file__).parent / "openai_js"
PACKAGE = Path(__file__).parents[2] / "client" / "javascript"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDeployment]:
    tool("node", "nodejs")
    with http_deployment(tmp_path_factory.mktemp("http-js")) as deployment:
        yield deployment


def run(directory: Path, script: str, *arguments: str) -> dict[str, Any]:
    command = ["node", str(directory / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_javascript_client_works_unchanged(up: HttpDeployment, tmp_path: Path) -> None:
    found = run(install(HERE, tmp_path), "chat.mjs", f"{up.url}/v1", up.tokens["shop"], up.tokens["scorer"])
    assert found["id"]
    assert found["text"] == found["whole"]
    assert found["chunks"] > 10
    print(f"first to last: {found['firstToLastMs']:.0f} ms in {found['chunks']} chunks")
    assert found["firstToLastMs"] > 2  # all at once would be less
    assert len(found["two"]) == 2
    assert found["usage"]["total_tokens"] > 10
    assert found["models"][0] == "policy"
    assert found["wrongField"] == {
        "kind": "BadRequestError",
        "status": 400,
        "code": "INVALID_REQUEST",
        "param": "presence_penalty",
    }
    assert (found["wrongModel"]["kind"], found["wrongModel"]["code"]) == ("NotFoundError", "UNKNOWN_VERSION")
    assert (found["wrongToken"]["kind"], found["wrongToken"]["code"]) == ("AuthenticationError", "WRONG_CREDENTIALS")
    assert (found["wrongRole"]["kind"], found["wrongRole"]["code"]) == ("PermissionDeniedError", "NOT_ALLOWED")
    assert found["timeOut"]["kind"] == "APIConnectionTimeoutError"


def test_the_script_for_pages_gives_feedback_about_its_generation(up: HttpDeployment) -> None:
    with httpx2.Client(base_url=up.url, headers={"authorization": f"Bearer {up.tokens['shop']}"}, timeout=60) as http:
        asked = {"messages": [{"role": "user", "content": "Hello"}], "n": 2, "max_tokens": 6}
        mine, other = (http.post("/v1/chat/completions", json=asked).json()["id"] for _ in range(2))
        token = http.post("/v1/feedback/tokens", json={"generation_id": mine, "annotator_id": "ann"}).json()["token"]
    found = run(HERE, "page.mjs", str(PACKAGE / "rewardloop-feedback.js"), up.url, token, mine, other)
    assert [signal["kind"] for signal in found["sent"]] == ["thumb", "thumb", "choice", "tie", "edit"]
    assert found["sent"][2] == {"kind": "choice", "chosen": 1, "rejected": 0}
    assert found["sent"][4] == {"kind": "edit", "edited_text": "a better answer", "response": 0}
    assert found["again"]["duplicate"]  # the same judgement counts once
    assert found["pressed"] == ["true", "false"]
    assert all(found["labels"])
    assert (found["foreign"], found["errors"]) == (None, ["NOT_ALLOWED"])


def test_the_package_is_small_and_has_types_and_no_dependency() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    script = (PACKAGE / "rewardloop-feedback.js").read_text()
    assert "dependencies" not in package
    assert all((PACKAGE / name).exists() for name in package["files"])
    assert (PACKAGE / package["types"]).exists()
    assert len(script.encode()) <= 2_048
    assert "innerHTML" not in script


def test_the_shipped_script_is_built_from_its_source() -> None:
    digest = hashlib.sha256((PACKAGE / "src" / "rewardloop-feedback.js").read_bytes()).hexdigest()
    first_line = (PACKAGE / "rewardloop-feedback.js").read_text().partition("\n")[0]
    assert f"sha256 {digest[:16]}" in first_line, "run `npm install && npm run build` in client/javascript"
