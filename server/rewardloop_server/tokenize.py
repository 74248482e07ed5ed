"""tokenize: prompts and responses to ids, in threads of their own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from rewardloop.formats.text import Encoded, Encoder, turns
from rewardloop.v1 import reward_pb2


class TokenizePool:
    """``threads`` threads that tokenize; the tokenizer releases the interpreter lock while it works."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def encode(self, encoder: Encoder, request: reward_pb2.ScoreRequest) -> list[Encoded]:
        """One sequence for each response, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _encode, encoder, request)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _encode(encoder: Encoder, request: reward_pb2.ScoreRequest) -> list[Encoded]:
    prompt_ids = encoder.prompt_ids(turns(request.prompt))
    return [encoder.pair(prompt_ids, ids) for ids in encoder.response_ids_batch(request.responses)]
