"""Trains the demo's starting point from its corpus: a tokenizer, a small policy and a reward model's base.

    python -m rewardloop_local.starter --out DIR --seed 0

writes the ordinary Hugging Face directories DIR/policy-base (a Llama-type causal LM) and DIR/reward-base (the same
trunk as a one-label classifier that knows relevance, and nothing about what people like).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rewardloop.formats.text import Encoder, TextFormat, Turn
from rewardloop_local import corpus

log = structlog.get_logger()

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLE_MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    BOS
    + "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '"
    + END
    + "' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1_500
MAX_LENGTH = 256
T = TypeVar("T")


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with role marks and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, *ROLE_MARKS, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLE_MARKS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """The layout that the tokenizer's chat template makes, as the trainer and the servers read it."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())

    def render(messages: list[dict[str, str]], invite: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=invite))

    text_format = TextFormat.from_chat_template(
        backend, render, eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id
    )
    return Encoder(backend, text_format, MAX_LENGTH)


def new_policy(tokenizer: PreTrainedTokenizerFast, *, layers: int = 4, width: int = 192) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def train_policy(
    model: LlamaForCausalLM, encoder: Encoder, examples: Sequence[tuple[str, str]], *, seed: int, rate: float = 3e-3
) -> float:
    """Next-token training on the completions alone. Returns the mean loss of the last tenth, in nats a token."""
    pairs = [(encoder.prompt_ids((Turn("user", prompt),)), encoder.response_ids(said)) for prompt, said in examples]
    batches = list(_batches(pairs, size=32, seed=seed))
    optimiser, schedule = _optimiser(model, rate, len(batches))
    losses: list[float] = []
    for batch in batches:
        ids, _ = _padded([p + r for p, r in batch], encoder.format.pad)
        starts = torch.tensor([len(p) for p, _ in batch])
        ends = torch.tensor([len(p) + len(r) for p, r in batch])
        place = torch.arange(1, ids.shape[1])
        is_completion = (place >= starts[:, None]) & (place < ends[:, None])  # (batch, length - 1), of the targets
        states = model.model(input_ids=ids).last_hidden_state[:, :-1]
        loss = functional.cross_entropy(model.lm_head(states[is_completion]), ids[:, 1:][is_completion])
        losses.append(_step(model, loss, optimiser, schedule))
    recent = losses[-max(1, len(losses) // 10) :]
    return sum(recent) / len(recent)


def train_relevance(
    model: LlamaForSequenceClassification,
    encoder: Encoder,
    pairs: Sequence[corpus.RelevancePair],
    *,
    seed: int,
    rate: float = 5e-4,
) -> float:
    """Bradley-Terry on relevant against irrelevant answers. Returns the accuracy in the last tenth of the steps."""
    encoded: list[tuple[list[int], list[int]]] = []
    for pair in pairs:
        prompt = encoder.prompt_ids((Turn("user", pair.prompt),))
        relevant, irrelevant = (encoder.response_ids(text) for text in (pair.relevant, pair.irrelevant))
        encoded.append((prompt + relevant, prompt + irrelevant))
    batches = list(_batches(encoded, size=16, seed=seed))
    optimiser, schedule = _optimiser(model, rate, len(batches))
    right: list[float] = []
    for batch in batches:
        ids, last = _padded([*(a for a, _ in batch), *(b for _, b in batch)], encoder.format.pad)
        states = model.model(input_ids=ids).last_hidden_state
        scores = model.score(states[torch.arange(len(last)), last]).squeeze(-1)
        margin = scores[: len(batch)] - scores[len(batch) :]
        # Centred: a free offset would make scores of different prompts hard to compare.
        loss = (
            -functional.logsigmoid(margin).mean() + 0.01 * (scores[: len(batch)] + scores[len(batch) :]).pow(2).mean()
        )
        _step(model, loss, optimiser, schedule)
        right.append(float((margin > 0).float().mean()))
    recent = right[-max(1, len(right) // 10) :]
    return sum(recent) / len(recent)


def write_starter(out: Path, seed: int, *, examples: int = 6_000, pairs: int = 1_500) -> dict[str, float]:
    """Write both directories under ``out``. Returns figures of the training, by name."""
    torch.manual_seed(seed)
    started = time.monotonic()
    said = corpus.sft_examples(examples, seed)
    tokenizer = train_tokenizer([text for example in said for text in example])
    encoder = encoder_of(tokenizer)
    policy = new_policy(tokenizer)
    sft_loss = train_policy(policy, encoder, said, seed=seed)
    policy.generation_config.update(do_sample=True, temperature=1.0, max_new_tokens=96)
    policy.save_pretrained(out / "policy-base")
    tokenizer.save_pretrained(out / "policy-base")
    policy_done = time.monotonic()
    log.info("policy trained", loss=round(sft_loss, 3), seconds=round(policy_done - started, 1))

    reward = LlamaForSequenceClassification(_classifier_config(policy.config))
    reward.model.load_state_dict(policy.model.state_dict())
    accuracy = train_relevance(reward, encoder, corpus.relevance_pairs(pairs, seed + 1), seed=seed)
    reward.save_pretrained(out / "reward-base")
    tokenizer.save_pretrained(out / "reward-base")
    log.info("reward model trained", accuracy=round(accuracy, 3), seconds=round(time.monotonic() - policy_done, 1))
    return {
        "sft_loss": sft_loss,
        "relevance_accuracy": accuracy,
        "policy_seconds": policy_done - started,
        "reward_seconds": time.monotonic() - policy_done,
    }


def _classifier_config(config: LlamaConfig) -> LlamaConfig:
    fields: dict[str, Any] = config.to_dict()
    return LlamaConfig(**{**fields, "num_labels": 1, "architectures": ["LlamaForSequenceClassification"]})


def _batches(items: Sequence[tuple[list[int], list[int]]], *, size: int, seed: int) -> Iterator[list[Any]]:
    """Batches of like lengths in random order: sorted within windows of 16 batches."""
    rng = random.Random(seed)
    order = rng.sample(range(len(items)), len(items))
    batches: list[list[int]] = []
    for start in range(0, len(order), window := 16 * size):
        near = sorted(order[start : start + window], key=lambda i: len(items[i][0]) + len(items[i][1]))
        found = [near[at : at + size] for at in range(0, len(near), size)]
        rng.shuffle(found)
        batches += found
    for batch in batches:
        yield [items[i] for i in batch]


def _padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (batch, length) and the index of each row's last real token (batch)."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def _optimiser(
    model: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 2), pct_start=0.1)


def _step(
    model: nn.Module,
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    schedule.step()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="rewardloop_local.starter", description="Trains the demo's starter models.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write policy-base and reward-base to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=6_000, help="of supervised training")
    parser.add_argument("--pairs", type=int, default=1_500, help="of relevance training")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figures = write_starter(options.out, options.seed, examples=options.examples, pairs=options.pairs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
