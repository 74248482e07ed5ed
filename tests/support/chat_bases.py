"""Small tokenizers and chat templates of the kinds that published chat models have, written for these tests.

Each template has the behaviour of a family that exactness depends on: trimmed contents, a system turn folded into the
user's, a refused system turn, role markers put together from the role, reasoning taken out of past answers, a date.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TEXTS = [
    "hello world how are you user assistant system model be quick an answer fine ok",
    "the quick brown fox  jumps\n\nover def f(x):\n    return x+1 日本語 🙂 würde",
] * 5
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
_HEADERS = """\
{{- bos_token -}}
{%- if dated -%}
{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') + '<|eot_id|>' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' + turn.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
_INST = """\
{%- set turns = messages -%}
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must take turns') }}{%- endif -%}
{%- set said = system + turn.content if loop.first else turn.content -%}
{%- if turn.role == 'user' -%}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + said.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}
"""
_NO_SYSTEM = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ raise_exception('no system turns') }}{%- endif -%}
{%- for turn in messages -%}
{%- set role = 'model' if turn.role == 'assistant' else turn.role -%}
{{ '<start_of_turn>' + role + '\\n' + turn.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
_BUILT_MARKERS = """\
{%- for turn in messages %}
{{ '<|' + turn.role + '|>\\n' + turn.content + eos_token }}
{%- if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{%- endif %}
{%- endfor %}
"""
_REASONING = """\
{%- for turn in messages -%}
{%- set said = turn.content -%}
{%- if turn.role == 'assistant' -%}
{%- if '</think>' in said -%}{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{%- if loop.last -%}{%- set said = '<think>\\n\\n</think>\\n\\n' + said -%}{%- endif -%}
{%- endif -%}
{{ '<|im_start|>' + turn.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class ChatBase:
    """A tokenizer and what stands in its configuration."""

    tokenizer: Tokenizer
    template: str
    bos: str | None
    eos: str

    def hugging_face(self) -> PreTrainedTokenizerFast:
        """The same as transformers loads it."""
        found = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self.tokenizer.to_str()),
            bos_token=self.bos,
            eos_token=self.eos,
            pad_token=self.eos,
        )
        found.chat_template = self.template
        return found


CHAT_KINDS = ("chatml", "headers", "inst", "inst_first", "no_system", "built_markers", "unigram", "reasoning")


@cache
def chat_base(kind: str) -> ChatBase:
    """The base of one of `CHAT_KINDS`."""
    match kind:
        case "chatml":
            return ChatBase(byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), _CHATML, None, "<|im_end|>")
        case "headers":
            reserved = [f"<|reserved_special_token_{number}|>" for number in range(200)]
            markers = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *reserved]
            return ChatBase(byte_bpe(markers), _HEADERS, "<|begin_of_text|>", "<|eot_id|>")
        case "inst":  # a Llama 2 tokenizer: a normalizer puts the space marker before every piece of text
            return ChatBase(pieces(["<s>", "</s>"], scheme="normalizer"), _INST, "<s>", "</s>")
        case "inst_first":  # a Mistral tokenizer: the space marker is put before the first piece alone
            return ChatBase(pieces(["<s>", "</s>", "[INST]", "[/INST]"], scheme="first"), _INST, "<s>", "</s>")
        case "no_system":
            markers = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
            return ChatBase(pieces(markers, scheme="never", text=["<table>"]), _NO_SYSTEM, "<bos>", "<eos>")
        case "built_markers":
            base = pieces(["<s>", "</s>"], scheme="always", text=["<|user|>", "<|assistant|>", "<|system|>"])
            return ChatBase(base, _BUILT_MARKERS, "<s>", "</s>")
        case "unigram":
            return ChatBase(_unigram(["<s>", "</s>"]), _INST, "<s>", "</s>")
        case "reasoning":
            base = byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], text=["<think>", "</think>"])
            return ChatBase(base, _REASONING, None, "<|im_end|>")
    raise ValueError(kind)


def byte_bpe(special: list[str], text: list[str] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return _with_added(tokenizer, special, text)


def pieces(special: list[str], *, scheme: str, text: list[str] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", *special, *bytes_],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [each for each in described["added_tokens"] if each["content"] not in bytes_]
    return _with_added(Tokenizer.from_str(json.dumps(described)), [], text)


def _unigram(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", *special],
        unk_token="<unk>",
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def _with_added(tokenizer: Tokenizer, special: list[str], text: list[str] | None) -> Tokenizer:
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in text or ()])
    return tokenizer


def _alphabet() -> list[str]:
    return sorted({*"".join(_TEXTS), *map(chr, range(33, 127))})
