"""Small tokenizers of the kinds that published encoders have."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_TEXTS = [
    "hello world how are you user assistant system model be quick an answer fine ok refund please because light",
    "the quick brown fox  jumps\n\nover def f(x):\n    return x+1 why is the sky blue? würde 🙂",
] * 5
_LETTERS = sorted({*"".join(_TEXTS), *map(chr, range(33, 127))})


@cache
def encoder_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an encoder, with its family's encoding of pairs.

    Args:
        kind: "wordpiece" (BERT), "bytes" (RoBERTa: two separators between the texts), "bytes_bert" (ModernBERT) or
            "unigram" (XLM-R: two separators).
    """
    match kind:
        case "wordpiece":
            return _wordpiece()
        case "bytes":
            return _bytes(("<s>", "</s>", "<pad>", "<unk>", "<mask>"), doubled=True)
        case "bytes_bert":
            return _bytes(("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), doubled=False)
        case "unigram":
            return _unigram()
    raise ValueError(kind)


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=_LETTERS, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = _pairs(tokenizer, "[CLS]", "[SEP]", doubled=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _bytes(special: tuple[str, str, str, str, str], *, doubled: bool) -> PreTrainedTokenizerFast:
    start, end, pad, unknown, mask = special
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[start, pad, end, unknown, mask],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = _pairs(tokenizer, start, end, doubled=doubled)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        **({"bos_token": start, "eos_token": end} if doubled else {}),
        model_input_names=["input_ids", "attention_mask"],
    )


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        unk_token="<unk>",
        initial_alphabet=_LETTERS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = _pairs(tokenizer, "<s>", "</s>", doubled=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _pairs(tokenizer: Tokenizer, start: str, end: str, *, doubled: bool) -> processors.TemplateProcessing:
    second = "0" if doubled else "1"
    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} " + (f"{end} " if doubled else "") + f"$B:{second} {end}:{second}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
