"""Publishable tokens over HTTP: made for a page, and held to their generation even where nobody asks for tokens."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.http_doors import door, fields

from rewardloop.formats.tokens import claims_of
from rewardloop_client.fake import FakeRewardloop

BACKEND = {"authorization": "Bearer rlt_backend"}


async def made(http: Any, **request: Any) -> dict[str, str]:
    reply = await http.post("/v1/feedback/tokens", json=request, headers=BACKEND)
    assert reply.status_code == 200, reply.text
    return {"authorization": f"Bearer {reply.json()['token']}"}


async def test_a_page_gives_feedback_with_it_about_its_generation_alone() -> None:
    fake = FakeRewardloop()
    answer, other = fake.generate("Hello"), fake.generate("Hello")
    async with door(fake) as http:
        page = await made(http, generation_id=answer.generation_id, annotator_id="ann")
        thumb = {"kind": "thumb", "up": True}
        good = await http.post("/v1/feedback", json={**thumb, "generation_id": answer.generation_id}, headers=page)
        refused = [
            await http.post("/v1/feedback", json={**thumb, "generation_id": other.generation_id}, headers=page),
            await http.post("/v1/feedback", json={**thumb, "prompt": "p", "responses": ["a"]}, headers=page),
            await http.post("/v1/score", json={"prompt": "p", "responses": ["a"]}, headers=page),
            await http.post("/v1/chat/completions", json={"messages": []}, headers=page),
            await http.post("/v1/feedback/tokens", json={"generation_id": "g"}, headers=page),
            await http.post("/rerank", json={}, headers=page),
            await http.get("/v1/models", headers=page),
            await http.get("/openapi.json", headers=page),
        ]
    assert good.status_code == 200
    assert [each.status_code for each in refused] == [403] * len(refused)
    assert {each.json()["error"]["reason"] for each in refused} == {"NOT_ALLOWED"}
    (event,) = fake.events
    assert event.annotator_id == "ann"


async def test_it_lives_as_long_as_was_asked_and_needs_a_token_to_be_made_from() -> None:
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/feedback/tokens", json={"generation_id": "g", "lifetime_s": 60}, headers=BACKEND)
        nobody = await http.post("/v1/feedback/tokens", json={"generation_id": "g"})
        wrong = await http.post(
            "/v1/feedback/tokens", json={"generation_id": "", "lifetime_s": 90_000}, headers=BACKEND
        )
    claims = claims_of(reply.json()["token"])
    assert claims is not None
    assert claims.expires == reply.json()["expires"] == pytest.approx(time.time() + 60, abs=5)
    assert nobody.status_code == 401
    assert fields(wrong) == ["generation_id", "lifetime_s"]


async def test_a_page_that_calls_too_often_waits() -> None:
    fake = FakeRewardloop()
    answer = fake.generate("Hello")
    async with door(fake, publishable_requests_per_s=1.0) as http:
        page = await made(http, generation_id=answer.generation_id)
        body = {"kind": "thumb", "up": True, "generation_id": answer.generation_id, "event_id": "e"}
        statuses = [(await http.post("/v1/feedback", json=body, headers=page)).status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
