"""Takes a part of the training data apart, by which a run chooses what to keep.

Held-out signals judge a candidate at its gate. A run that chose its weights by them, too, would pass the gate more
often than it deserves.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair, pairs_of
from rewardloop_trainer.data.split import keys_of, side_of

# With fewer questions than this the part is drawn signal by signal.
_FEW_QUESTIONS = 20
# A loss of fewer pairs is noise: nothing is chosen by it.
LEAST_PAIRS = 20
_SALT = "validation"


def validation_part(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Divide training records into those to learn from and those to choose by, each in their order.

    No question is in both parts, unless there are fewer than 20. The same question is on the same side in every round.

    Args:
        records: The training records.
        share: Share of the questions that is taken apart, from 0 to 1.

    Returns:
        Both parts. The second is empty if it would have fewer than `LEAST_PAIRS` comparisons.
    """
    roots = [keys_of(record.prompt).root for record in records]
    are_few = len(set(roots)) < _FEW_QUESTIONS
    keys = [_signal(record) for record in records] if are_few else roots
    is_apart = [side_of(key, heldout_share=share, salt=_SALT) == "heldout" for key in keys]
    apart = [record for record, is_it in zip(records, is_apart, strict=True) if is_it]
    if len(pairs_of(apart)) < LEAST_PAIRS:
        return list(records), []
    return [record for record, is_it in zip(records, is_apart, strict=True) if not is_it], apart


def _signal(record: Record) -> str:
    """Identify a signal by its responses, so that two people's choices about the same ones are on one side."""
    match record:
        case Pair():
            said: tuple[str, ...] = (record.chosen, record.rejected)
        case TiedPair():
            said = (record.first, record.second)
        case RankedList():
            said = record.responses
        case Labelled():
            said = (record.response,)
    return "\x1e".join(sorted(said))
