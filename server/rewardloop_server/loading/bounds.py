"""Checks that every token id and position that a version's texts can have is in the tables of its graph."""

from __future__ import annotations

from tokenizers import Tokenizer

from rewardloop.formats.text import Encoder
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.loading.graph_tables import Tables

# A vocabulary whose ids have holes is searched up to this many times its size.
_MOST_HOLES = 4


def check_bounds(encoder: Encoder, tables: Tables, where: str) -> int:
    """Check a version's ids and lengths against the tables of its graph, as far as the graph tells their rows.

    Args:
        encoder: Turns texts into the version's tokens.
        tables: The graph's tables.
        where: The version's name, for error texts.

    Returns:
        The highest id that a text can have: of the vocabulary, the added tokens, the affixes and the padding.

    Raises:
        NotLoadable: An id or a position is beyond its table. It would fail the requests that have it.
    """
    written = encoder.format.ids
    if not all(isinstance(each, int) and each >= 0 for each in written):
        raise NotLoadable(f"{where}: its text format has ids that are not whole numbers from 0 on")
    highest = max(*written, _highest_of_tokenizer(encoder.tokenizer))
    if tables.tokens is not None and highest >= tables.tokens:
        raise NotLoadable(
            f"{where}: its tokenizer and text format give ids up to {highest},"
            f" but the graph's embedding has {tables.tokens} rows: export it with an embedding for every token"
        )
    if tables.positions is not None and encoder.max_length > tables.positions:
        raise NotLoadable(
            f"{where}: its sequences have up to {encoder.max_length} tokens,"
            f" but the graph has {tables.positions} positions: export it with a smaller max_length"
        )
    return highest


def _highest_of_tokenizer(tokenizer: Tokenizer) -> int:
    """Return the highest id of the tokenizer.

    Its vocabulary is not taken as a whole, because that would hold the interpreter's lock for a tenth of a second for
    150,000 tokens, while requests are served.
    """
    highest = max(tokenizer.get_added_tokens_decoder(), default=0)
    token_of = tokenizer.model.id_to_token
    left = size = tokenizer.get_vocab_size(with_added_tokens=False)
    for candidate in range(_MOST_HOLES * size):
        if left == 0:
            return max(highest, candidate - 1)
        left -= token_of(candidate) is not None
    return max(highest, *tokenizer.get_vocab().values())
