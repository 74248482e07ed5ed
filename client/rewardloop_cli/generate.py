"""The command `generate`: prints the policy's answers to one prompt."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rewardloop.formats.messages import prompt_of
from rewardloop.v1 import common_pb2
from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.models import active
from rewardloop_client import Candidate, Generation
from rewardloop_data.rows import Json, RowError, parse_line, turns_of

_STDIN = "-"
_ENDS = {"stop": "the answer ended", "length": "cut at the most new tokens; --max-new-tokens allows more"}


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The prompt and the sampling settings of one request, and how its answers are printed.

    A sampling setting that is None or 0 is left to the server.

    Attributes:
        prompt: The prompt; "-" or None reads it from standard input.
        messages: File with the messages of the prompt; "-" is standard input.
        n: How many answers.
        policy_version: The version that has to answer; None for any.
    """

    server: str
    prompt: str | None = None
    messages: Path | None = None
    n: int = 1
    max_new_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    policy_version: str | None = None
    timeout_s: float = 120.0
    as_json: bool = False


def run(options: GenerateOptions) -> int:
    """Generate and print. Returns 0. Raises UsageError and RewardloopError."""
    prompt = _prompt(options)
    with open_client(options.server, timeout_s=options.timeout_s) as client:
        if options.policy_version is not None:
            info = active(client, "policy")
            _check_version(options, {info.version} if info is not None else set())
        found = client.generate(
            prompt,
            candidates=options.n,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
        )
    _check_version(options, {_version(found, each) for each in found.candidates})
    if options.as_json:
        print(json.dumps(_fields(found), ensure_ascii=False))
    else:
        _print(found)
    return 0


def _prompt(options: GenerateOptions) -> common_pb2.Prompt:
    if options.prompt is not None and options.messages is not None:
        raise UsageError("give either a PROMPT or --messages")
    try:
        if options.messages is not None:
            return prompt_of(turns_of("prompt", *_messages(options.messages)))
        return prompt_of(turns_of("prompt", _stdin() if options.prompt in (None, _STDIN) else options.prompt))
    except RowError as error:
        raise UsageError(str(error)) from error


def _messages(path: Path) -> tuple[Json, Json]:
    """Read messages, from a list or under ``messages`` or ``prompt`` of an object, and the ``tools`` beside them."""
    try:
        data = sys.stdin.buffer.read() if str(path) == _STDIN else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        found = parse_line(data)
    except RowError as error:
        raise UsageError(f"{path} {error}") from error
    value, tools = found, None
    if isinstance(found, dict):
        value, tools = found.get("messages", found.get("prompt")), found.get("tools")
    if not isinstance(value, list):
        raise UsageError(f"{path} holds no list of {{role, content}} messages")
    return value, tools


def _stdin() -> str:
    if sys.stdin.isatty():
        raise UsageError("give a PROMPT, --messages FILE, or the prompt on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 (byte {error.start})") from error


def _check_version(options: GenerateOptions, versions: set[str]) -> None:
    wanted = options.policy_version
    if wanted is not None and versions != {wanted}:
        others = ", ".join(sorted(versions - {wanted})) or "none"
        raise UsageError(
            f"policy version {wanted} does not answer: live is {others}; "
            f"'rewardloop models promote policy {wanted}' makes {wanted} live"
        )


def _version(found: Generation, candidate: Candidate) -> str:
    return (candidate.policy_version or found.policy_version).version


def _fields(found: Generation) -> dict[str, object]:
    truncated = found.truncated
    return {
        "generation_id": found.generation_id,
        "policy_version": found.policy_version.version,
        "candidates": [
            {
                "text": each.text,
                "tokens": each.token_count,
                "finish_reason": each.finish_reason,
                "log_probability": each.log_probability,
                "policy_version": _version(found, each),
            }
            for each in found.candidates
        ],
        "truncated": None
        if truncated is None
        else {"dropped_turns": truncated.dropped_turns, "is_cut": truncated.is_cut},
    }


def _print(found: Generation) -> None:
    """Print the answers on standard output, and remarks about them on standard error."""
    for number, each in enumerate(found.candidates, start=1):
        if len(found.candidates) > 1:
            _say(f"answer {number} of {len(found.candidates)}:")
        print(each.text, flush=True)
        end = _ENDS.get(each.finish_reason, each.finish_reason)
        _say(f"policy version {_version(found, each)}, {each.token_count} tokens, {end}")
    if found.truncated is not None:
        cut = " and the middle of the rest was cut" if found.truncated.is_cut else ""
        _say(f"the prompt was too long: {found.truncated.dropped_turns} turns were left out{cut}")
    _say(f"generation {found.generation_id}")


def _say(text: str) -> None:
    print(f"rewardloop: {text}", file=sys.stderr, flush=True)
