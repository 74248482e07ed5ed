"""The text of an answer while its tokens come, one after the other, as the tokenizer decodes all of them together.

The text that a token adds may depend on the tokens before it: some are parts of one character, and many tokenizers
drop a space at the start. So the last few tokens are decoded twice, without and with the new ones, and the new text is
what the second text has more than the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

# A decoder writes this for bytes that are no whole character yet.
UNFINISHED = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Decoders that look at a token alone, or at whether it is the first one. The second kind joins the tokens.
_EACH = frozenset(("Replace", "Metaspace", "WordPiece", "ByteFallback", "Strip"))
_JOINING = frozenset(("ByteLevel", "Fuse"))


class Pieces:
    """Decodes tokens, and tells which of them add text. Threads may share it.

    Attributes:
        is_local: Whether what a token adds depends on the tokens close to it alone. Decoders that are not known to be
            so, such as one that replaces words of the joined text, or that treats the last token in its own way, are
            not.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(place for place, token in added.items() if token.special)
        self.is_local = _is_local(tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of response ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def has_text(self, token: int) -> bool:
        """Whether the token takes part in a text: it is no special one, and the tokenizer knows it."""
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def is_byte(self, token: int) -> bool:
        """Whether the token is a single byte. A run of such tokens is read as a whole."""
        return _BYTE.fullmatch(self._tokenizer.id_to_token(token) or "") is not None


class GrowingText:
    """The text of one answer's ids, which always equals the text of all ids decoded together.

    Each call decodes the new tokens and a few before them: as far back as the last but one place at which the text was
    whole, which no token after it changes. Only a run of tokens that give no whole character is decoded again and
    again. A tokenizer that is not local (`Pieces`) decodes all ids.

    Args:
        pieces: The tokenizer's.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._start()

    def _start(self) -> None:
        self._seen = 0  # ids
        self._text = ""
        # The text up to a place, the tokens since the place before that one, those of them before the place, and what
        # these are decoded to by themselves.
        self._whole, self._window, self._before, self._alone = "", list[int](), 0, ""

    def upto(self, ids: Sequence[int], count: int) -> str:
        """Return the text of the first ``count`` ids. The ids begin with those of the call before."""
        if count < self._seen:
            self._start()
        new = [token for token in ids[self._seen : count] if self._pieces.has_text(token)]
        self._seen = count
        if not new:
            return self._text
        self._window += new
        decoded = self._pieces.decode(self._window)
        self._text = self._whole + decoded[len(self._alone) :]
        if self._pieces.is_local and not (decoded.endswith(UNFINISHED) or self._pieces.is_byte(new[-1])):
            self._settle()
        return self._text

    def _settle(self) -> None:
        """Begin at the last place from now on: the tokens after it stand before what comes."""
        context = self._window[self._before :]
        # Without any text of theirs, the next token would be decoded as the first one of a text.
        if alone := self._pieces.decode(context):
            self._whole, self._window, self._before, self._alone = self._text, context, len(context), alone


def _is_local(tokenizer: Tokenizer) -> bool:
    if tokenizer.decoder is None:
        return True  # tokens are joined by spaces
    is_joined = False
    for node in _nodes(json.loads(tokenizer.decoder.__getstate__())):
        kind = node.get("type")
        if kind not in _EACH | _JOINING or node.get("stop") or (is_joined and not _is_local_after_joining(node)):
            return False
        is_joined = is_joined or kind in _JOINING
    return True


def _nodes(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    for each in decoder["decoders"]:
        yield from _nodes(each)


def _is_local_after_joining(node: Mapping[str, Any]) -> bool:
    """Whether a decoder of the joined text looks at its start or at single characters alone."""
    replaced = node.get("pattern", {}).get("String", "")
    return node["type"] in ("Strip", "Fuse") or (node["type"] == "Replace" and len(replaced) == 1)
