"""How many tokens a model gets, and the reason that is printed and kept."""

from __future__ import annotations

import pytest
from support.reward_bases import byte_tokenizer
from transformers import BertConfig, LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedTokenizerFast

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
    found = input_length(config, of_base, wanted, default=default, setting="--max-length")
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
            MistralConfig(max_position_embeddings=8192, sliding_window=1024),
            {},
            2048,
            "2,048, of the 8,192 that the base reads (its positions): the default; --max-length changes it",
        ),
    ],
)
def test_the_length_and_its_reason(
    config: PretrainedConfig, arguments: dict[str, int | None], tokens: int, reason: str
) -> None:
    assert chosen(config, **arguments) == (tokens, reason)  # type: ignore[arg-type]
