"""Rendered text to token ids, without any of a caller's text becoming a control token.

A tokenizer finds its added tokens in a text wherever they stand: ``<|im_end|>`` in a user's message is the end of the
message. Here the caller's text is marked before a template renders it, and only what the template itself wrote is read
as control tokens. Text without such strings gets the ids that Hugging Face's ``apply_chat_template`` gives.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

_SIGN = re.compile(r"[^\w\s]|_")
_PRIVATE = "".join(chr(code) for code in range(0xE000, 0xE100))


class ForgedControlToken(ValueError):
    """Raised when the tokenizer makes a control token of plain text, so that a caller's text could forge one."""


class UnguardedName(ValueError):
    """Raised for a text with the name of a control token that cannot be interrupted, because it is one character."""


class GuardedTokenizer:
    """Encodes text in which control tokens are named by secret strings. Safe to share between threads.

    An added token is a control token if the tokenizer flags it as special, or if the chat template writes it and it is
    no word. The other added tokens, such as Gemma's HTML tags, are text. A control token that is not flagged as special
    and that the template writes for tools alone is a tool marker: the assistant's own text may hold it, because an
    answer that calls a tool is such a text.

    Args:
        tokenizer: The base's tokenizer. It is copied.
        renderings: Renderings of harmless conversations. They show which names a template writes or puts together, such
            as ``'<|' + role + '|>'``, and whether a text may be encoded in parts.
        of_tools: Renderings of harmless conversations with tools.
    """

    def __init__(self, tokenizer: Tokenizer, renderings: Sequence[str], of_tools: Sequence[str] = ()) -> None:
        described = json.loads(tokenizer.to_str())
        names = _control_tokens(described["added_tokens"], "\0".join((*renderings, *of_tools)))
        strict = set(_control_tokens(described["added_tokens"], "\0".join(renderings)))
        salt = secrets.token_hex(8)
        self._secrets = {name: f"\U000f0000{salt}:{number}\U000f0001" for number, name in enumerate(names)}
        ids = {token["content"]: token["id"] for token in described["added_tokens"]}
        for token in described["added_tokens"]:
            token["content"] = self._secrets.get(token["content"], token["content"])
        self._unknown = _unknown_piece(described["model"])
        _rename_pieces(described["model"], self._secrets)
        described["truncation"] = described["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(described))
        inner = {name: self._tokenizer.token_to_id(secret) for name, secret in self._secrets.items()}
        self._moved = {inner[name]: ids[name] for name in names if inner[name] != ids[name]}
        self.control_ids = frozenset(ids[name] for name in names if name != self._unknown)
        longest_first = sorted(names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._strict = re.compile("|".join(re.escape(name) for name in longest_first if name in strict) or r"(?!)")
        self.tool_markers = frozenset(names) - strict
        self._all_names = "\0".join(names)
        self._beginnings = frozenset(name[:length] for name in names for length in range(1, len(name)))
        self._endings = frozenset(name[length:] for name in names for length in range(1, len(name)))
        self._longest = max(map(len, names), default=0)
        self._first_characters = {name[0] for name in names}
        self._last_characters = {name[-1] for name in names}
        strips = any(t["lstrip"] or t["rstrip"] for t in described["added_tokens"])
        self._is_separable = not strips and all(self._divides(text) for text in (*renderings, *of_tools))

    def is_harmless(self, text: str, *, by_assistant: bool = False) -> bool:
        """Whether the text holds no control token's name, and no part of one at an end where it could become whole.

        ``by_assistant`` says that the text may hold tool markers.
        """
        names = self._strict if by_assistant else self._control
        return not (names.search(text) or self._could_join_after(text) or self._could_join_before(text))

    def is_within_a_name(self, text: str) -> bool:
        """Whether the text is a part of a control token's name, which a template could complete on both sides."""
        return bool(text) and text in self._all_names

    def divide(self, texts: Sequence[str]) -> tuple[str, list[str]]:
        """Divide texts into what they share and the rest of each, so that encoding both in turn gives the same ids.

        The shared part ends after a control token. It is empty if there is none, or if the tokenizer may give a text
        other ids in parts.
        """
        first, *others = texts
        shared = min((_shared_length(first, other) for other in others), default=0)
        if not self._is_separable or not shared:
            return "", list(texts)
        cut = 0
        for found in self._control.finditer(first):
            # A name may be part of a longer one in another text.
            if found.end() > shared or any(self._name_at(text, found.start()) != found[0] for text in others):
                break
            cut = found.end()
        return first[:cut], [text[cut:] for text in texts]

    def mark(self, text: str, guard: str, *, by_assistant: bool = False) -> str:
        """The text with ``guard`` in every place where a control token could be read, but for those it may hold.

        Raises:
            UnguardedName: A control token's name is a single character.
        """
        names = self._strict if by_assistant else self._control
        marked = _broken(text, names, guard)
        is_part = self.is_within_a_name(text)
        before = guard if is_part or self._could_join_before(text) else ""
        after = guard if is_part or self._could_join_after(text) else ""
        return f"{before}{marked}{after}"

    def interrupt(self, text: str, guard: str) -> str:
        """The text with ``guard`` after every sign, so that nothing that a template makes of it is a control token.

        Raises:
            UnguardedName: A control token's name is a single character.
        """
        return _broken(_SIGN.sub(lambda found: f"{found[0]}{guard}", f"{guard}{text}"), self._control, guard)

    def names_in(self, rendered: str) -> list[str]:
        """Names of the control tokens in a rendered text, in order."""
        return self._control.findall(rendered)

    def encode(self, rendered: Sequence[str], guard: str = "") -> list[list[int]]:
        """Ids of rendered texts. Names of control tokens become their ids, and ``guard`` is taken out.

        Raises:
            ForgedControlToken: Plain text became a control token.
        """
        named = [self._control.sub(lambda found: self._secrets[found[0]], text) for text in rendered]
        if guard:
            named = [text.replace(guard, "") for text in named]
        ids = [each.ids for each in self._tokenizer.encode_batch_fast(named, add_special_tokens=False)]
        if self._moved:
            ids = [[self._moved.get(i, i) for i in each] for each in ids]
        for text, each in zip(rendered, ids, strict=True):
            written = sum(1 for name in self._control.findall(text) if name != self._unknown)
            if written != sum(1 for i in each if i in self.control_ids):
                raise ForgedControlToken("the tokenizer makes a control token of plain text")
        return ids

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which no control token is named. Raises `ForgedControlToken` as `encode` does."""
        ids = [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        if self._moved:
            ids = [[self._moved.get(i, i) for i in each] for each in ids]
        if not all(map(self.control_ids.isdisjoint, ids)):
            raise ForgedControlToken("the tokenizer makes a control token of plain text")
        return ids

    def _name_at(self, text: str, place: int) -> str:
        found = self._control.match(text, place)
        return found[0] if found else ""

    def _could_join_after(self, text: str) -> bool:
        if self._first_characters.isdisjoint(text[-self._longest :]):
            return False
        return any(text[-length:] in self._beginnings for length in range(1, min(self._longest, len(text) + 1)))

    def _could_join_before(self, text: str) -> bool:
        if self._last_characters.isdisjoint(text[: self._longest]):
            return False
        return any(text[:length] in self._endings for length in range(1, min(self._longest, len(text) + 1)))

    def _divides(self, text: str) -> bool:
        """Whether the text has the same ids if it is encoded in parts, each of which ends with a control token."""
        ends = [0, *(found.end() for found in self._control.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise(ends) if end > start]
        try:
            whole, *found = self.encode([text, *parts])
        except ForgedControlToken:
            return False
        return whole == [i for ids in found for i in ids]


def can_be_forged(tokenizer: Tokenizer, written: Iterable[int]) -> bool:
    """Whether a text that names a control token may get its id, although special tokens in texts are plain text.

    A Unigram vocabulary may have ``</s>`` among its pieces, and a text's added token is found if it is not special.

    Args:
        tokenizer: A tokenizer whose ``encode_special_tokens`` is set.
        written: Ids that a layout writes; control tokens are these and the special ones.
    """
    written = set(written)
    added = tokenizer.get_added_tokens_decoder()
    names = {i: token.content for i, token in added.items() if token.special or i in written}
    unknown = getattr(tokenizer.model, "unk_token", None)
    if (place := getattr(tokenizer.model, "unk_id", None)) is not None:
        unknown = tokenizer.model.id_to_token(place)
    control = {i for i, name in names.items() if name != unknown}
    probes = [probe for i in control for probe in (names[i], f"a{names[i]}b", f" {names[i]} ")]
    encoded = tokenizer.encode_batch_fast(probes, add_special_tokens=False)
    return any(not control.isdisjoint(each.ids) for each in encoded)


def unused_private_character(texts: Iterable[str]) -> str:
    """A private-use character that no text holds, to mark text with."""
    used = set().union(*map(set, texts))
    return next(character for character in _PRIVATE if character not in used)


def _shared_length(one: str, other: str) -> int:
    """Return how many characters at the start are the same."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _broken(text: str, names: re.Pattern[str], guard: str) -> str:
    """Return the text with ``guard`` between the characters of every name, of those too that overlap others."""
    while names.search(text):
        broken = names.sub(lambda found: guard.join(found[0]), text)
        if broken == text:
            raise UnguardedName("a text holds the name of a control token of a single character")
        text = broken
    return text


def _control_tokens(added: Sequence[dict[str, Any]], literals: str) -> list[str]:
    """Return the names of control tokens. One that stands in the literals only as a part of another is none."""
    control = set()
    for token in sorted(added, key=lambda each: -len(each["content"])):
        name = token["content"]
        if name and (token["special"] or (name in literals and not _is_word(name))):
            control.add(name)
            literals = literals.replace(name, "\0")
    return [token["content"] for token in added if token["content"] in control]


def _is_word(name: str) -> bool:
    """Whether a token looks like text, and not like the marker of a role."""
    return name.isspace() or name.strip("▁Ġ ").isalnum()


def _unknown_piece(model: dict[str, Any]) -> str | None:
    """The piece that stands for text outside the vocabulary, which any text may hold."""
    if isinstance(model.get("unk_id"), int):
        return str(model["vocab"][model["unk_id"]][0])
    found = model.get("unk_token")
    return found if isinstance(found, str) else None


def _rename_pieces(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename the control tokens' pieces in the model's vocabulary, so that plain text does not reach them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
