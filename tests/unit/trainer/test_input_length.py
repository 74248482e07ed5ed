"""How many tokens a model gets, and the reason that is printed and kept."""

from __future__ import annotations

import pytest
from support.reward_bases import byte_tokenizer
from transformers import BertConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from rewardloop_trainer.data.base_text import longest_input
from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length

LLAMA = LlamaConfig(max_position_embeddings=32_768)


def chosen(
    config: PretrainedConfig,
    wanted: int | None = None,
    *,
    default: int | None = DEFAULT_REWARD_LENGTH,
    **tokenizer: int,
) -> tuple[int, str]:
    of_base = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), **tokenizer)
    longest = longest_input(config, of_base, within_window=False)
    found = input_length(config, of_base, longest, wanted=wanted, default=default)
    return found.tokens, found.reason


ALL = "32,768, all of the 32,768 that the base reads (its positions)"
OF = "of the 32,768 that the base reads (its positions)"


@pytest.mark.parametrize(
    ("config", "arguments", "tokens", "reason"),
    [
        (
            LLAMA,
            {},
            2048,
            f"2,048, {OF}: the default; --max-length changes it",
        ),
        (LLAMA, {"default": None}, 32_768, ALL),
        (
            LLAMA,
            {"wanted": 4096},
            4096,
            f"4,096, {OF}: set by --max-length",
        ),
        (LLAMA, {"wanted": 32_768}, 32_768, ALL),
        (
            BertConfig(max_position_embeddings=512),
            {"wanted": 600},
            512,
            "512, all of the 512 that the base reads (its positions), and fewer than the 600 of --max-length",
        ),
        (
            LLAMA,
            {"model_max_length": 1024},
            1024,
            "1,024, all of the 1,024 that the base reads (model_max_length of its tokenizer)",
        ),
        (
            LlamaConfig(max_position_embeddings=1024, rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
            {},
            1024,
            "1,024, all of the 1,024 that the base reads "
            "(the length up to which its rotary embeddings do not depend on the batch)",
        ),
    ],
)
def test_the_length_and_its_reason(
    config: PretrainedConfig, arguments: dict[str, int | None], tokens: int, reason: str
) -> None:
    assert chosen(config, **arguments) == (tokens, reason)  # type: ignore[arg-type]
