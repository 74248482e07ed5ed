"""Trains the starter models from the corpus: a tokenizer, a small policy, and a base for reward models.

`python -m rewardloop_local.starter --out DIR` writes two ordinary Hugging Face directories: DIR/policy-base is a
causal language model of the Llama type, and DIR/reward-base is the same trunk as a classifier with one label. The
reward base knows which answers are relevant and which give the right fact, as a large pretrained model would. It knows
nothing of tone and length, nor how much each of these matters to people.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.file_modes import give_default_modes
from rewardloop.formats.text import Encoder, Turn
from rewardloop.process.log import configure_logging
from rewardloop_local import corpus
from rewardloop_trainer.data.base_layout import decoder_layout
from rewardloop_trainer.data.completions import Completion, encode_completions
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.token_batches import plan_batches, rate_scale
from rewardloop_trainer.policy.sft import SftProgress, train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings

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
FACTS, STYLED, PAIRS = 10_000, 7_000, 25_600
_KNOWLEDGE_RATE = 2e-3
# With 16 the model mistakes a seventh of the facts after as many pairs.
_PAIRS_PER_STEP = 32


@dataclass(frozen=True, slots=True)
class StarterFigures:
    """How the training of the starter models went.

    Attributes:
        sft_loss: The policy's loss at the end, in nats a token.
        knowledge_accuracy: The reward base's accuracy on the last pairs, each before it was learned from.
        policy_seconds: Time that the policy took.
        reward_seconds: Time that the reward base took.
        cpu_seconds: CPU time of both.
    """

    sft_loss: float
    knowledge_accuracy: float
    policy_seconds: float
    reward_seconds: float
    cpu_seconds: float


def write_starter(
    out: Path, seed: int, *, facts: int = FACTS, styled: int = STYLED, pairs: int = PAIRS
) -> StarterFigures:
    """Train both models and write their directories under ``out``.

    Args:
        out: The directory of the two.
        seed: Of the weights, the examples and their order.
        facts: Number of right facts that the policy learns from first.
        styled: Number of answers in all styles that it learns from then.
        pairs: Number of pairs that the reward base, which begins as the policy's trunk, learns from. Half of them are
            about relevance and half about the right fact.
    """
    torch.manual_seed(seed)
    started, cpu_started = time.monotonic(), time.process_time()
    stages = (
        (corpus.fact_examples(facts, seed + 1), _sft_settings(6e-3, seed)),
        (corpus.sft_examples(styled, seed), _sft_settings(3e-3, seed)),
    )
    names = ("the policy learns facts", "the policy learns styles")
    tokenizer = train_tokenizer([text for examples, _ in stages for example in examples for text in example])
    encoder = encoder_of(tokenizer)
    policy = new_policy(tokenizer)
    loss = float("nan")
    for (examples, settings), name in zip(stages, names, strict=True):
        dialogues = [Dialogue.answered(_asked(prompt), text) for prompt, text in examples]
        loss = train_sft(policy, encoder, dialogues, settings, partial(_tell_step, name)).last_loss
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    policy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=96, **ends
    )
    policy.save_pretrained(out / "policy-base")
    tokenizer.save_pretrained(out / "policy-base")
    policy_done = time.monotonic()
    _say(f"the policy is trained: loss {loss:.3f}, {policy_done - started:.0f} s")

    reward = new_reward_model(policy)
    known = [*corpus.relevance_pairs(pairs // 2, seed + 2), *corpus.right_pairs(pairs - pairs // 2, seed + 3)]
    accuracy = train_knowledge(reward, encoder, known, seed=seed)
    reward.save_pretrained(out / "reward-base")
    tokenizer.save_pretrained(out / "reward-base")
    for base in ("policy-base", "reward-base"):
        give_default_modes(out / base)
    reward_seconds = time.monotonic() - policy_done
    _say(f"the reward model is trained: accuracy {accuracy:.3f}, {reward_seconds:.0f} s")
    cpu_seconds = time.process_time() - cpu_started
    return StarterFigures(loss, accuracy, policy_done - started, reward_seconds, cpu_seconds)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, and give it role marks and a chat template."""
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
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
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
    """The encoder with which the trainer and the servers render the tokenizer's chat template."""
    text_format = decoder_layout(tokenizer, "write").text_format
    return Encoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), text_format, MAX_LENGTH)


def new_policy(tokenizer: PreTrainedTokenizerFast, *, layers: int = 2, width: int = 128) -> LlamaForCausalLM:
    """Make an untrained policy that is small enough to learn the corpus in a minute on two cores."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.08,  # about 1 / sqrt(width); with the usual 0.02 it learns to copy topics far later
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def new_reward_model(policy: LlamaForCausalLM) -> LlamaForSequenceClassification:
    """Make a classifier with one label on a copy of the policy's trunk, which knows the language already."""
    fields: dict[str, Any] = policy.config.to_dict()
    for name in ("architectures", "id2label", "label2id"):
        fields.pop(name, None)
    config = LlamaConfig(**fields)
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    reward.model.load_state_dict(policy.model.state_dict())
    return reward


def train_knowledge(
    model: LlamaForSequenceClassification, encoder: Encoder, pairs: Sequence[corpus.KnowledgePair], *, seed: int
) -> float:
    """Train the model on what the corpus knows, by the Bradley-Terry loss.

    Returns:
        The accuracy on the pairs of the last fifth of the steps, each measured before the step that learned from it.
    """
    prompts = [_asked(pair.prompt) for pair in pairs]
    better = encode_completions(encoder, list(zip(prompts, (p.better for p in pairs), strict=True)))
    worse = encode_completions(encoder, list(zip(prompts, (p.worse for p in pairs), strict=True)))
    fitting = [(a, b) for a, b in zip(better, worse, strict=True) if a is not None and b is not None]
    plan = plan_batches([len(a.ids) + len(b.ids) for a, b in fitting], _PAIRS_PER_STEP, seed, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_KNOWLEDGE_RATE, weight_decay=0.01)
    right: list[bool] = []
    for step, batch in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = _KNOWLEDGE_RATE * rate_scale(step, len(plan), 0.1)
        rows = [fitting[i][0] for i in batch] + [fitting[i][1] for i in batch]
        scores = _scores(model, rows, encoder.format.pad)
        margin = scores[: len(batch)] - scores[len(batch) :]
        # Without this term every prompt could have an offset of its own, which makes scores hard to compare.
        centre = (scores[: len(batch)] + scores[len(batch) :]).pow(2).mean()
        loss = -functional.logsigmoid(margin).mean() + 0.01 * centre
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        right += (margin > 0).tolist()
        _tell("the reward model learns which answers are relevant", step + 1, len(plan))
    last = right[-max(1, len(right) // 5) :]
    return sum(last) / len(last)


def _tell_step(what: str, done: SftProgress) -> None:
    _tell(what, done.step, done.steps)


def _tell(what: str, step: int, steps: int) -> None:
    """Say how far a stage is, in some fifty lines."""
    if step % max(1, steps // 50) == 0 or step == steps:
        _say(f"{what}: step {step} of {steps}")


def _say(text: str) -> None:
    """Print a line for people. `rewardloop up` shows the last one every few seconds."""
    print(text, file=sys.stderr, flush=True)


def _scores(model: LlamaForSequenceClassification, rows: Sequence[Completion], pad: int) -> torch.Tensor:
    """The score at each row's last token, of shape (rows,)."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows])
    last = torch.tensor([len(row.ids) - 1 for row in rows])
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    scores: torch.Tensor = model.score(states[torch.arange(len(rows)), last]).squeeze(-1)
    return scores


def _sft_settings(rate: float, seed: int) -> SftSettings:
    return SftSettings.model_validate({"learning_rate": rate, "batch_examples": 16, "seed": seed})


def _asked(prompt: str) -> tuple[Turn, ...]:
    return (Turn("user", prompt),)


def main() -> None:
    """Train them. What was found is in DIR/figures.json; the output is sentences alone."""
    parser = argparse.ArgumentParser(prog="rewardloop_local.starter", description="Trains the demo's starter models.")
    parser.add_argument("--out", type=Path, required=True, help="directory for policy-base and reward-base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", type=int, default=FACTS, help="number of right facts that the policy learns first")
    parser.add_argument("--styled", type=int, default=STYLED, help="number of styled answers that it learns then")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="number of pairs that the reward base learns")
    options = parser.parse_args()
    configure_logging("warning", "console")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    options.out.mkdir(parents=True, exist_ok=True)
    figures = write_starter(options.out, options.seed, facts=options.facts, styled=options.styled, pairs=options.pairs)
    (options.out / "figures.json").write_text(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
