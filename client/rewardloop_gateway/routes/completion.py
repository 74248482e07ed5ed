"""A generation as the OpenAI API's JSON."""

from __future__ import annotations

import time
from typing import Any

from rewardloop_client import Candidate, Generation
from rewardloop_gateway.routes.chat_shapes import POLICY, ChatRequest
from rewardloop_gateway.shapes import version_json


def completion_json(body: ChatRequest, generation: Generation) -> dict[str, Any]:
    """Return a whole completion."""
    return {
        "id": generation.generation_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{POLICY}:{generation.policy_version.version}",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": each.text},
                "finish_reason": each.finish_reason,
                "logprobs": logprobs_json(each) if body.logprobs else None,
            }
            for i, each in enumerate(generation.candidates)
        ],
        "usage": usage_json(generation),
        "rewardloop": extras_json(generation),
    }


def logprobs_json(candidate: Candidate) -> dict[str, Any]:
    """Return the sampled tokens of a candidate."""
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.log_probability,
                "bytes": list(token.text.encode()),
                "top_logprobs": [],
            }
            for token in candidate.tokens
        ]
    }


def usage_json(generation: Generation) -> dict[str, int]:
    """Return how many tokens were read and sampled."""
    said = sum(each.token_count for each in generation.candidates)
    read = generation.prompt_token_count
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def extras_json(generation: Generation) -> dict[str, Any]:
    """Return what the OpenAI API has no place for."""
    truncated, chosen = generation.truncated, generation.chosen
    return {
        "candidates": [
            {
                "policy_version": version_json(each.policy_version or generation.policy_version),
                "log_probability": each.log_probability,
                "score": each.score,
                "uncertainty": each.uncertainty,
            }
            for each in generation.candidates
        ],
        "truncated": None
        if truncated is None
        else {"dropped_turns": truncated.dropped_turns, "is_cut": truncated.is_cut},
        "chosen": None
        if chosen is None
        else {
            "selection": chosen.selection,
            "sampled": chosen.sampled,
            "random_share": chosen.random_share,
            "is_random": chosen.is_random,
            "set_probability": chosen.set_probability,
            "reward_version": version_json(chosen.reward_version),
        },
    }
