"""The contract's rules of content, by which the fake refuses what the server would answer with INVALID_ARGUMENT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rewardloop.formats.messages import tool_problems
from rewardloop.formats.mixing.names import is_name
from rewardloop.formats.signals import MOST_RESPONSES, signal_problems
from rewardloop.formats.vocabulary import ROLES
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2, reward_pb2
from rewardloop_client._errors import Violation

MAX_RESPONSES = 256
MAX_SAMPLED = 64
MAX_ID_CHARACTERS = 128
MAX_TAGS = 16
MAX_TAG_CHARACTERS = 64


def score_violations(request: reward_pb2.ScoreRequest) -> Iterator[Violation]:
    """Yield every rule that one group breaks."""
    yield from prompt_violations(request.prompt)
    yield from _responses(request.responses, MAX_RESPONSES)


def prompt_violations(prompt: common_pb2.Prompt) -> Iterator[Violation]:
    """Yield every rule that a prompt breaks."""
    kind = prompt.WhichOneof("content")
    if kind is None or (kind == "text" and not prompt.text):
        yield Violation("prompt", "is empty")
    for path, problem in tool_problems(prompt):
        yield Violation(f"prompt.{path}", problem)
    if kind != "conversation":
        return
    messages = prompt.conversation.messages
    if not messages:
        yield Violation("prompt.conversation.messages", "is empty")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            yield Violation(f"prompt.conversation.messages[{i}].role", f"is not one of {', '.join(ROLES)}")
        if not message.content and not message.tool_calls:
            yield Violation(f"prompt.conversation.messages[{i}].content", "is empty")
    if messages and messages[-1].role == "assistant":
        yield Violation("prompt.conversation.messages", "ends with the assistant's turn")


def choice_violations(request: policy_pb2.GenerateRequest) -> Iterator[Violation]:
    """Yield every rule that a request breaks about candidates and the choice among them."""
    shown = request.candidates or 1
    if not 1 <= shown <= MAX_SAMPLED:
        yield Violation("candidates", f"is {shown}, not 1..{MAX_SAMPLED}")
    is_informative = request.selection == policy_pb2.SELECTION_INFORMATIVE
    if not request.best_of:
        if request.selection:
            yield Violation("selection", "has nothing to choose from without best_of")
        if request.reward_model:
            yield Violation("reward_model", "has nothing to score without best_of")
        if request.HasField("random_share"):
            yield Violation("random_share", "has nothing to choose from without best_of")
        return
    if not shown <= request.best_of <= MAX_SAMPLED:
        yield Violation("best_of", f"is {request.best_of}, not {shown}..{MAX_SAMPLED}")
    if is_informative and shown != 2:
        yield Violation("candidates", f"is {shown}, but an informative pair has 2")
    if request.HasField("random_share") and not (is_informative and 0 <= request.random_share <= 1):
        yield Violation("random_share", "is not in 0..1, or the selection is not informative")


def event_violations(event: feedback_pb2.FeedbackEvent, responses: Sequence[str]) -> Iterator[Violation]:
    """Yield every rule that one event breaks. ``responses`` are its own, or those of the generation that it names."""
    if not 1 <= len(event.event_id) <= MAX_ID_CHARACTERS:
        yield Violation("event_id", f"has {len(event.event_id)} characters, not 1..{MAX_ID_CHARACTERS}")
    if len(event.annotator_id) > MAX_ID_CHARACTERS:
        yield Violation("annotator_id", f"has more than {MAX_ID_CHARACTERS} characters")
    if len(event.tags) > MAX_TAGS or any(max(len(k), len(v)) > MAX_TAG_CHARACTERS for k, v in event.tags.items()):
        yield Violation("tags", f"more than {MAX_TAGS}, or a key or value above {MAX_TAG_CHARACTERS} characters")
    for name in ("arrival_time", "policy_version", "shown", "task"):
        if event.HasField(name):
            yield Violation(name, "is set by the server")
    if event.response_versions:
        yield Violation("response_versions", "is set by the server")
    if event.caller:
        yield Violation("caller", "is set by the server")
    if event.aspect and not is_name(event.aspect):
        yield Violation("aspect", "is no name of a reward model")
    if event.generation_id:
        if event.HasField("prompt") or event.responses:
            yield Violation("generation_id", "excludes prompt and responses")
    else:
        yield from prompt_violations(event.prompt)
        yield from _responses(event.responses, MOST_RESPONSES)
    for field, problem in signal_problems(event, responses):
        yield Violation(field, problem)


def _responses(responses: Sequence[str], limit: int) -> Iterator[Violation]:
    if not 1 <= len(responses) <= limit:
        yield Violation("responses", f"has {len(responses)} items, not 1..{limit}")
    for i, text in enumerate(responses):
        if not text:
            yield Violation(f"responses[{i}]", "is empty")
