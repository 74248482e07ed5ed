"""Bounds how much of what a model learns can come from one person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rewardloop_trainer.data.preferences import Record


def cap_influence(records: Sequence[Record], share: float) -> list[Record]:
    """Return the records in their order, with the weights of annotators who have too much of it scaled down.

    Records without an annotator are left as they are, and so is everything if fewer than two annotators are named.

    Args:
        records: The records of a round.
        share: Most of the named annotators' weight that one of them has, from 0 to 1. Of few annotators, each may have
            twice the mean.
    """
    totals: dict[str, float] = defaultdict(float)
    for record in records:
        if record.annotator:
            totals[record.annotator] += record.weight
    if len(totals) < 2:
        return list(records)
    most = max(share, 2 / len(totals)) * sum(totals.values())
    scales = {annotator: most / total for annotator, total in totals.items() if total > most}
    return [
        replace(record, weight=record.weight * scales[record.annotator]) if record.annotator in scales else record
        for record in records
    ]
