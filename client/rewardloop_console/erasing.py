"""Words a page uses about an erasure before somebody asks for it, and while it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rewardloop_client import AsyncRewardloopClient, ErasureProgress, TaughtVersions
from rewardloop_console.refusals import Refusal

_MOST_ID = 128


@dataclass(frozen=True, slots=True)
class Person:
    """Whose signals are to be erased.

    Attributes:
        annotator_id: The person's id, as the product sends it.
        caller: The product whose annotator it is; None for those of all products.
    """

    annotator_id: str
    caller: str | None

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Person:
        """Read the fields of a form. Spaces around an id are part of it. Raises Refusal."""
        annotator_id = fields.get("id", "")
        if not 0 < len(annotator_id) <= _MOST_ID:
            raise Refusal(400, f"An id has 1 to {_MOST_ID} characters.")
        return cls(annotator_id, fields.get("caller") or None)

    async def taught(self, client: AsyncRewardloopClient) -> TaughtVersions:
        """Return which versions learned from the person. Nothing is erased. Raises RewardloopError."""
        return await client.taught_versions(annotator_id=self.annotator_id, caller=self.caller)

    async def erase(self, client: AsyncRewardloopClient, repeated: str) -> ErasureProgress:
        """Begin the erasure, if the id was written a second time. Raises Refusal and RewardloopError."""
        if repeated != self.annotator_id:
            raise Refusal(400, "The two ids differ, so nothing was erased. Write the person's id once more.")
        return await client.erase(annotator_id=self.annotator_id, caller=self.caller)


async def progress_of(client: AsyncRewardloopClient, erasure_id: str) -> ErasureProgress:
    """Return how far an erasure has come. Raises Refusal and RewardloopError."""
    if not erasure_id:
        raise Refusal(400, "No erasure is named.")
    return await client.erase(erasure_id=erasure_id)
