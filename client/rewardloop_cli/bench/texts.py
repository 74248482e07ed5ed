"""Makes the requests of bench: groups of texts, serialized before the measurement starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rewardloop.v1 import reward_pb2
from rewardloop_cli.failures import UsageError
from rewardloop_cli.score import Named, group_of
from rewardloop_client import RewardloopError, ScoreGroup
from rewardloop_client._convert import group_request
from rewardloop_client._types import LaneName
from rewardloop_data.rows import RowError
from rewardloop_data.source_file import SourceFile, UnreadableFile

# Plain words that are one token each in the common vocabularies, so that a word counts about as a token.
_PROSE = """
please reset the account and tell me how long it takes since monday we could not open any of our files when you
ask for help from this team they will call back in an hour or two but first check that your phone is on write
down what was said then send a short note with the order number to support do not share it with others if there
are more questions about price delivery or return there is a page that lists all of them by name and date
"""
_WORDS = _PROSE.split()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Median numbers of words in a prompt and a response. Numbers are log-normal; a ``sigma`` of 0 makes all equal."""

    prompt: int
    response: int
    sigma: float

    def draw(self, median: int, chance: random.Random) -> int:
        return max(1, round(median * chance.lognormvariate(0.0, self.sigma)))


LENGTHS = {
    "short": Lengths(prompt=18, response=40, sigma=0.4),  # about 64 tokens a pair
    "real": Lengths(prompt=28, response=270, sigma=0.7),  # as a chat assistant's: about 300 tokens, with a long tail
}


def built_in(lengths: Lengths, responses: int, count: int, seed: int = 0) -> list[ScoreGroup]:
    """Return ``count`` groups of random words, which are the same for the same arguments."""
    chance = random.Random(seed)

    def text(median: int) -> str:
        return " ".join(chance.choices(_WORDS, k=lengths.draw(median, chance)))

    return [ScoreGroup(text(lengths.prompt), [text(lengths.response) for _ in range(responses)]) for _ in range(count)]


def read_groups(path: Path, count: int) -> list[ScoreGroup]:
    """Return the first ``count`` groups of a file that `rewardloop score --input` reads. Raises UsageError."""

    def groups() -> Iterator[ScoreGroup]:
        for line in SourceFile.of(path).lines():
            try:
                yield group_of(line.value(), Named())
            except RowError as error:
                raise UsageError(f"{path}: line {line.number} {error}") from error

    try:
        return list(islice(groups(), count))
    except UnreadableFile as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Payloads:
    """Serialized requests of one RPC, which are sent in turn. Each holds ``groups`` groups."""

    rpc: str
    requests: list[bytes]
    groups: int

    def source(self) -> Callable[[], bytes]:
        """Return a function that returns the next request, over and over."""
        requests, position = self.requests, -1

        def next_request() -> bytes:
            nonlocal position
            position = (position + 1) % len(requests)
            return requests[position]

        return next_request


def payloads(rpc: str, groups: list[ScoreGroup], lane: LaneName, batch: int) -> Payloads:
    """Serialize the requests.

    Args:
        rpc: "score", "batch", or "stream", whose requests get their ids later.
        groups: The groups to send.
        lane: The lane of all of them.
        batch: Groups in each request of "batch".

    Raises:
        UsageError: There are no groups, or a text cannot be sent.
    """
    try:
        requests = [group_request(group, lane) for group in groups]
    except RewardloopError as error:
        raise UsageError(f"a text cannot be sent: {error}") from error
    if not requests:
        raise UsageError("there is nothing to send")
    if rpc == "score":
        return Payloads(rpc, [request.SerializeToString() for request in requests], 1)
    if rpc == "stream":
        made = [reward_pb2.ScoreStreamRequest(request=request).SerializeToString() for request in requests]
        return Payloads(rpc, made, 1)
    cycled = requests * -(-batch // len(requests))
    starts = range(0, len(cycled) - batch + 1, batch)
    made = [reward_pb2.ScoreBatchRequest(groups=cycled[i : i + batch]).SerializeToString() for i in starts]
    return Payloads(rpc, made, batch)
