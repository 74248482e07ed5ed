"""A language model whose answers can all be listed, so that what it should learn is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rewardloop.formats.affix_layout import Affix, TextFormat
from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.completions import Completion, sequence_logprobs, token_logprobs
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.online.sampler import Said, SampleCall
from rewardloop_trainer.policy.rollouts import Rollout

PAD, END = 0, 1
WORDS = ("a", "b")
LONGEST = 2
PROMPTS: tuple[Prompt, ...] = tuple((Turn("user", word),) for word in WORDS[:2])


def word_encoder() -> Encoder:
    """Words are tokens; a prompt is a word and ``<ask>``."""
    words = {word: i for i, word in enumerate(("<pad>", "<end>", "<ask>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    plain = Affix((), ())
    return Encoder(tokenizer, TextFormat((), plain, plain, plain, Affix((2,), (END,)), False, PAD), 16)


def word_llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3 + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
        initializer_range=0.05,  # no answer is rare: what is rarely said is learned slowly
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def answers(encoder: Encoder, prompt: Prompt) -> list[Completion]:
    """All that the model can say to it within LONGEST tokens."""
    ids = tuple(encoder.prompt_ids(prompt))
    every = range(3 + len(WORDS))
    said = [(END,), *((first, second) for first in every if first != END for second in every)]
    return [Completion((*ids, *each), len(ids)) for each in said]


def text_of(encoder: Encoder, answer: Completion) -> str:
    said = answer.ids[answer.start :]
    return encoder.decode(said[:-1] if said[-1] == END else said)


def distribution(model: Any, encoder: Encoder, prompt: Prompt) -> Tensor:
    """The probability of each of `answers`; they sum to 1."""
    return sequence_logprobs(model, answers(encoder, prompt), PAD, 10_000).double().exp()


class ListedSampler:
    """Draws whole answers by their listed probability: what sampling token by token does, at a fraction of the time.

    The draw is systematic: of each prompt's answers, all groups together hold the expected number, rounded up or down,
    so a step's gradient has little noise.
    """

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self._model = model
        self._encoder = encoder

    name = "listed"

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        generator = torch.Generator().manual_seed(call.sampling.seed)
        listed = {prompt: self._listed(prompt) for prompt in dict.fromkeys(call.prompts)}
        drawn = {}
        for prompt, (rollouts, probabilities) in listed.items():
            count = call.sampling.responses * call.prompts.count(prompt)
            places = (torch.arange(count) + torch.rand(1, generator=generator)) / count
            cumulative = probabilities.cumsum(0)
            chosen = torch.searchsorted(cumulative / cumulative[-1], places.double())
            shuffled = chosen[torch.randperm(count, generator=generator)]
            drawn[prompt] = iter([rollouts[i] for i in shuffled.tolist()])
        return Said([list(islice(drawn[prompt], call.sampling.responses)) for prompt in call.prompts], call.step)

    def _listed(self, prompt: Prompt) -> tuple[list[Rollout], Tensor]:
        said = answers(self._encoder, prompt)
        with torch.no_grad():
            logprobs, is_token = token_logprobs(self._model, said, PAD)
        rollouts = [
            Rollout(
                text_of(self._encoder, answer),
                answer,
                tuple(row[kept].tolist()),
                "stop" if answer.ids[-1] == END else "length",
            )
            for answer, row, kept in zip(said, logprobs, is_token, strict=True)
        ]
        return rollouts, distribution(self._model, self._encoder, prompt)


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """pi_ref * exp(r / beta) over its sum: what maximises E[r] - beta KL(pi || pi_ref)."""
    tilted = reference * (rewards.double() / beta).exp()
    return tilted / tilted.sum()


def total_variation(one: Tensor, other: Tensor) -> float:
    return 0.5 * (one - other).abs().sum().item()
