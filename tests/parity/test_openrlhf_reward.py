"""OpenRLHF's own executor of a rollout rewards its answer by the HTTP door, at the address of `remote_rm_url`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.consoles import console_on_a_port
from support.policy_versions import END, PAD, byte_tokenizer

from rewardloop_client.fake import FakeRewardloop
from rewardloop_client.integrations.openrlhf import remote_rm_url

pytestmark = pytest.mark.long

pytest.importorskip("openrlhf", exc_type=ImportError)


class Engine:
    """Answers each prompt with the same tokens, as OpenRLHF's actor of vLLM does with sampled ones."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.token_ids, finish_reason="stop", logprobs=None)])


async def rollout(url: str, answer: str) -> dict[str, Any]:
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD)
    engine = Engine(tokenizer(answer, add_special_tokens=False)["input_ids"])
    sampling = SimpleNamespace(max_tokens=16, logprobs=None)
    executor = SingleTurnAgentExecutor(remote_rm_url(url))
    found: dict[str, Any] = await executor.execute("alpha: ", "the label", sampling, 64, tokenizer, engine)
    return found


async def test_answer_of_a_rollout_is_rewarded_by_the_door() -> None:
    with console_on_a_port(FakeRewardloop()) as url:  # a score is the length of the answer
        found = await rollout(url, "two words")
    assert (found["reward"], found["scores"]) == ([9.0], [9.0])
    assert list(found["extra_logs"]) == ["uncertainty"]


async def test_end_token_is_scored_as_text_because_openrlhf_sends_it() -> None:
    with console_on_a_port(FakeRewardloop()) as url:
        found = await rollout(url, f"two words{END}")
    assert found["reward"] == [9.0 + len(END)]
