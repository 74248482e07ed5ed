"""The threads that tokenize answer every request of a job, though one of them cannot be tokenized."""

from __future__ import annotations

import asyncio
import time
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


class Slow(Lengths):
    """Takes a millisecond for each KiB, and notes what it was given."""

    def __init__(self) -> None:
        self.jobs: list[list[int]] = []

    def groups(self, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[list[Encoded]]:
        sizes = [len(response) for _, responses in groups for response in responses]
        self.jobs.append(sizes)
        time.sleep(sum(sizes) / 2**20)
        return super().groups(groups)


def request(*responses: str) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="p"), responses=responses)


async def test_request_that_cannot_be_tokenized_fails_alone_in_its_job() -> None:
    pool = TokenizePool(1)
    texts = ["a" * n for n in range(1, 20)] + ["bad"] + ["a" * n for n in range(20, 40)]
    try:
        outcomes = await asyncio.gather(
            *(pool.encode(Lengths(), request(text), "a", is_bulk=True) for text in texts),  # type: ignore[arg-type]
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


async def test_a_large_request_is_split_by_its_responses_and_comes_back_in_order() -> None:
    pool, encoder = TokenizePool(2), Slow()
    texts = ["x" * (10_000 + i) for i in range(20)]
    try:
        rows = await pool.encode(encoder, request(*texts), "a")  # type: ignore[arg-type]
    finally:
        pool.close()
    assert [row.ids[0] for row in rows] == [len(text) for text in texts]
    assert len(encoder.jobs) >= 7
    assert max(sum(job) for job in encoder.jobs) <= 32 * 1024


async def test_a_caller_waits_for_one_part_of_anothers_flood_and_not_for_all_of_it() -> None:
    pool, encoder = TokenizePool(2), Slow()
    flood = [request(*["x" * 20_000] * 20) for _ in range(10)]
    try:
        tasks = [asyncio.create_task(pool.encode(encoder, each, "flood")) for each in flood]  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        for text in ("y" * 100, "y" * 2_000, "y" * 20_000):
            before = len(encoder.jobs)
            await pool.encode(encoder, request(text), "another")  # type: ignore[arg-type]
            assert len(encoder.jobs) - before <= 6
        await asyncio.gather(*tasks)
    finally:
        pool.close()


async def test_texts_that_cannot_be_split_leave_a_thread_to_short_ones() -> None:
    pool, encoder = TokenizePool(2), Slow()
    try:
        tasks = [
            asyncio.create_task(pool.encode(encoder, request("x" * 500_000), "flood"))  # type: ignore[arg-type]
            for _ in range(4)
        ]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await pool.encode(encoder, request("y" * 2_000), "another")  # type: ignore[arg-type]
        assert time.monotonic() - started < 0.3  # a long one takes half a second
        await asyncio.gather(*tasks)
    finally:
        pool.close()


async def test_a_request_whose_caller_went_away_is_not_tokenized() -> None:
    pool, encoder = TokenizePool(1), Slow()
    try:
        first = asyncio.create_task(pool.encode(encoder, request("x" * 30_000), "a"))  # type: ignore[arg-type]
        gone = asyncio.create_task(pool.encode(encoder, request("y" * 20_000), "b"))  # type: ignore[arg-type]
        await asyncio.sleep(0.005)
        gone.cancel()
        await first
        await pool.encode(encoder, request("z" * 1_000), "c")  # type: ignore[arg-type]
    finally:
        pool.close()
    assert [20_000] not in encoder.jobs
    assert pool.waiting == 0
