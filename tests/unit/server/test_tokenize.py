"""The threads that tokenize answer every request of a job, though one of them cannot be tokenized."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rewardloop.formats.text import Encoded, Turn
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.scoring.tokenize import TokenizePool


class Lengths:
    """An encoder that gives each response's length as its one id, and fails on a response "bad"."""

    def groups(self, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[list[Encoded]]:
        if any("bad" in responses for _, responses in groups):
            raise ValueError("cannot be tokenized")
        return [[Encoded([len(r)], None, truncated=False) for r in responses] for _, responses in groups]


def request(response: str) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="p"), responses=[response])


async def test_request_that_cannot_be_tokenized_fails_alone_in_its_job() -> None:
    pool = TokenizePool(1)
    texts = ["a" * n for n in range(1, 20)] + ["bad"] + ["a" * n for n in range(20, 40)]
    try:
        outcomes = await asyncio.gather(
            *(pool.encode(Lengths(), request(text), is_bulk=True) for text in texts),  # type: ignore[arg-type]
            return_exceptions=True,
        )
    finally:
        pool.close()
    for text, outcome in zip(texts, outcomes, strict=True):
        if text == "bad":
            with pytest.raises(ValueError, match="cannot be tokenized"):
                raise outcome
        else:
            assert outcome[0].ids == [len(text)]
