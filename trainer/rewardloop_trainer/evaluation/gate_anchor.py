"""The fixed held-out statements on which each reward version meets the best one before it, kept beside the version.

Without them, thirty versions could each be a little worse than the one before, and nothing would show it. The file
names statements by digests of their signals' ids and holds no text: a trainer on another machine finds the texts in the
ledger, and a statement whose signal was erased is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewardloop_trainer.evaluation.evidence import Evidence, Readings, statement_key
from rewardloop_trainer.evaluation.reward_gate import Contest

GATE_ANCHOR = "gate_anchor.json"
# The anchor set takes new statements while it has fewer than these.
ANCHOR_STATEMENTS = 1_000


@dataclass(frozen=True, slots=True)
class GateAnchor:
    """What a version knows of the anchor set.

    Attributes:
        best: The best version so far, among this version and those that it descends from.
        readings: The best version's readings of the anchor set, by the statements' keys.
    """

    best: str
    readings: Mapping[str, float]

    @classmethod
    def read(cls, directory: Path | None, version: str | None) -> GateAnchor | None:
        """Read the file of ``version`` in its directory; None if it has none."""
        path = None if directory is None else directory / GATE_ANCHOR
        if path is None or not path.exists():
            return None
        raw = json.loads(path.read_text())
        readings = raw["readings"]
        if not raw.get("is_digested"):  # an earlier release named signals by their ids
            readings = {statement_key(name): value for name, value in readings.items()}
        return cls(raw["best"] or str(version), readings)

    def write(self, path: Path, version: str = "") -> None:
        """Write the file of ``version``, whose number is not known before it is published: "" stands for it."""
        best = "" if self.best == version else self.best
        readings = dict(sorted(self.readings.items()))
        path.write_text(json.dumps({"best": best, "is_digested": True, "readings": readings}))


def meet_best(
    anchor: GateAnchor | None,
    parent: str,
    evidence: Evidence,
    candidate: Readings,
    live: Readings,
    read_best: Callable[[str, Evidence], Readings | None],
) -> tuple[Contest, GateAnchor]:
    """Let the candidate meet the best version so far on the anchor set.

    The set takes statements while it is too small. They are then read by the best version, whose other readings are
    those that it had when it was published.

    Args:
        anchor: What the live version knows; None if it was not made by a round, and is the best so far.
        parent: The live version.
        evidence: All held-out statements.
        candidate: The candidate's readings of them.
        live: The live version's.
        read_best: Returns a version's readings; None if it cannot be loaded any more, and the set stays as it is.

    Returns:
        The contest, and what is then known of the best version.
    """
    anchor = anchor or GateAnchor(parent, {})
    known = [key for key in evidence.keys if key in anchor.readings]
    readings = {key: anchor.readings[key] for key in known}
    room = max(0, ANCHOR_STATEMENTS - len(known))
    if new := _chosen((key for key in evidence.keys if key not in readings), room):
        added, of_pairs, of_grades = evidence.among(new)
        theirs = live.where(of_pairs, of_grades) if anchor.best == parent else read_best(anchor.best, added)
        if theirs is not None:
            readings |= theirs.by_key(added)
    kept, of_pairs, of_grades = evidence.among(readings.keys())
    contest = Contest(kept, candidate.where(of_pairs, of_grades), Readings.of(kept, readings))
    return contest, GateAnchor(anchor.best, readings)


def anchor_of_candidate(evidence: Evidence, candidate: Readings, met: tuple[Contest, GateAnchor] | None) -> GateAnchor:
    """Return what the candidate knows of the anchor set when it is published: it may be the best itself.

    Args:
        evidence: All held-out statements.
        candidate: The candidate's readings of them.
        met: What `meet_best` returned; None for a first version.
    """
    if met is None:
        kept, of_pairs, of_grades = evidence.among(_chosen(evidence.keys, ANCHOR_STATEMENTS))
        return GateAnchor("", candidate.where(of_pairs, of_grades).by_key(kept))
    contest, anchor = met
    if contest.gain().mean >= 0:
        return GateAnchor("", contest.candidate.by_key(contest.evidence))
    return anchor


def _chosen(keys: Iterable[str], most: int) -> set[str]:
    """Choose keys by their hash, so that the order of signals does not matter."""
    return set(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:most])
