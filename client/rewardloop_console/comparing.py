"""Asks versions the same, and sorts what they say by how far they disagree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rewardloop_client import AsyncRewardloopClient, DeadlineExceeded, InvalidRequest, NotFound, Unavailable
from rewardloop_console.refusals import Refusal, sentence_of

MOST_PROMPTS, MOST_VERSIONS = 20, 4
_MOST_CHARACTERS = 4_000
_NEW_TOKENS = 200
# An answer takes longer than other calls, whose time the client knows.
_ANSWER_S = 120.0
_SEED = 1
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Said:
    """What a version says to a prompt.

    Attributes:
        version: The version.
        text: Its answer; empty if it failed.
        score: The live reward model's score of it; None if there is none.
        problem: Why it gave no answer, as a sentence; "" if it did.
    """

    version: str
    text: str = ""
    score: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with the answers of several policies.

    Attributes:
        prompt: The prompt.
        said: What each version says, in their order.
        disagreement: The difference between the highest and the lowest score; without scores 1 if the texts differ.
    """

    prompt: str
    said: tuple[Said, ...]
    disagreement: float


@dataclass(frozen=True, slots=True)
class Margins:
    """What two reward models say of two answers.

    Attributes:
        prompt: The prompt.
        answers: Two answers of the live policy.
        one: The first version's score of the first answer, less that of the second.
        other: The same of the second version.
    """

    prompt: str
    answers: tuple[str, str]
    one: float
    other: float

    @property
    def is_contradiction(self) -> bool:
        """Whether the versions prefer different answers."""
        return self.one * self.other < 0

    @property
    def disagreement(self) -> float:
        return abs(self.one - self.other)


def prompts_of(text: str) -> list[str]:
    """Return the prompts of a form's field, one a line. Raises Refusal."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise Refusal(400, "Write at least one prompt.")
    if len(prompts) > MOST_PROMPTS:
        raise Refusal(400, f"Write at most {MOST_PROMPTS} prompts, not {len(prompts)}.")
    if any(len(each) > _MOST_CHARACTERS for each in prompts):
        raise Refusal(400, f"A prompt has more than {_MOST_CHARACTERS:,} characters.")
    return prompts


async def ask_policies(
    client: AsyncRewardloopClient, prompts: Sequence[str], versions: Sequence[str], *, scored: bool
) -> list[Asked]:
    """Let each version answer each prompt, and return the prompts on which they disagree most first.

    Args:
        client: Calls with the person's token.
        prompts: The prompts.
        versions: Numbers of policies that are in memory.
        scored: Whether the live reward model scores the answers.

    Raises:
        Refusal: No version or too many are named.
        RewardloopError: The services refuse the calls whatever the version is.
    """
    if not 2 <= len(set(versions)) <= MOST_VERSIONS:
        raise Refusal(400, f"Choose 2 to {MOST_VERSIONS} versions to compare.")
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(prompt: str) -> Asked:
        async with room:
            said = [await _answer(client, prompt, version) for version in versions]
            texts = [each.text for each in said if each.text]
            scores: dict[str, float] = {}
            if scored and texts:
                scores = dict(zip(texts, (await client.score(prompt, texts)).values, strict=True))
        said = [Said(each.version, each.text, scores.get(each.text), each.problem) for each in said]
        known = list(scores.values())
        apart = max(known) - min(known) if known else float(len(set(texts)) > 1)
        return Asked(prompt, tuple(said), apart)

    found = await asyncio.gather(*map(ask, prompts))
    return sorted(found, key=lambda each: -each.disagreement)


async def compare_rewards(
    client: AsyncRewardloopClient, prompts: Sequence[str], model: str, one: str, other: str
) -> list[Margins]:
    """Let two reward versions score two answers of the live policy to each prompt, contradictions first.

    Raises:
        Refusal: The versions are the same.
        RewardloopError: A call fails, such as for a version that is not in memory.
    """
    if one == other:
        raise Refusal(400, "Choose two different versions.")
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(prompt: str) -> Margins | None:
        async with room:
            given = await client.generate(
                prompt, candidates=2, seed=_SEED, max_new_tokens=_NEW_TOKENS, timeout_s=_ANSWER_S
            )
            texts = [each.text for each in given.candidates if each.text]
            if len(texts) < 2:
                return None
            first, second = [
                (await client.score(prompt, texts, model=model, pin_version=version)).values for version in (one, other)
            ]
        return Margins(prompt, (texts[0], texts[1]), first[0] - first[1], second[0] - second[1])

    found = [each for each in await asyncio.gather(*map(ask, prompts)) if each is not None]
    return sorted(found, key=lambda each: (not each.is_contradiction, -each.disagreement))


async def _answer(client: AsyncRewardloopClient, prompt: str, version: str) -> Said:
    try:
        given = await client.generate(
            prompt, seed=_SEED, max_new_tokens=_NEW_TOKENS, pin_version=version, timeout_s=_ANSWER_S
        )
    except (NotFound, InvalidRequest, Unavailable, DeadlineExceeded) as error:  # of this version or prompt alone
        return Said(version, problem=sentence_of(error))
    return Said(version, given.candidates[0].text)
