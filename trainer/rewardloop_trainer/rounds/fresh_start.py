"""Decides from which weights a round starts, of a reward model or of a policy: the live version's, or the base's.

A round from the live weights is cheap: it learns the new signals, with some old ones beside them. But its versions
carry every earlier pass along, and a signal that is learned again in each round is learned by heart. A round from the
base sees every signal that it is given equally often: the newest, and a sample of the older ones, without which it
would know the answers of the latest policy alone. It is due when the signals have grown by a factor since the last
one, whether that one's version went live or not, and whether it still is live. Growth is counted in the ledger as it is
now: signals of the last one that were erased or taken back since do not have to come again. With a factor g, such
rounds pass over a signal g / (g - 1) times on average, however many rounds there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.store import ModelStore
from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS
from rewardloop_trainer.rounds.line import first_of_line, line_of
from rewardloop_trainer.rounds.policy_anchor import has_same_tokens

# In a manifest's notes: the signals of the last round that started from the base.
FRESH_SIGNALS = "fresh_signals"
# In a manifest's notes: why its own round started from the base.
_START = "start"
_LAST = "the last fresh start"

# Counts the rows of the ledger up to a stream id, that one included.
RowsThrough = Callable[[str], int]
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class StartChoice:
    """Where a round starts.

    Attributes:
        version: The version to load; None, for a reward model, to make a new one on the base that the settings name.
        is_fresh: Whether that is the base, so that the round learns from older signals as well (`fresh_records`).
        reason: Why, for the log and the manifest.
    """

    version: str | None
    is_fresh: bool
    reason: str


def choose_start(
    store: ModelStore,
    live: str | None,
    signals: int,
    growth: float,
    rows_through: RowsThrough,
    fresh_until: str = "",
    model: str = REWARD,
) -> StartChoice:
    """Choose the weights that a round starts from.

    Args:
        store: The model store.
        live: The live version; None if there is none.
        signals: Signals in the ledger up to the round's last one.
        growth: By what factor the signals have to grow from one start from the base to the next; 0 never starts there.
        rows_through: Counts the signals that the ledger has now up to a stream id.
        fresh_until: The stream id up to which the last round that started from the base learned, whatever became of its
            version; "" if there was none.
        model: The model's name.
    """
    if live is None:
        return StartChoice(None, True, "there is no live version")
    if growth == 0:
        return StartChoice(live, False, "starts from the base are off")
    learned = _signals_of_last_fresh(store, model, live, rows_through)
    base = untrained_version(store, model, live)
    # A round never waits to start from the base while the base itself is live.
    other = rows_through(fresh_until) if fresh_until and base != live else 0
    last, tried = ("the last fresh start, which is not live", other) if other > learned else (_LAST, learned)
    if signals < growth * tried:
        return StartChoice(live, False, f"{signals} signals are not {growth:g} times the {tried} of {last}")
    if base is None:
        return StartChoice(live, False, "the store has no version before the first training")
    return StartChoice(base, True, f"{signals} signals, {tried} at {last}")


def choose_policy_start(
    store: ModelStore,
    live: str,
    signals: int,
    growth: float,
    algorithm: str,
    rows_through: RowsThrough,
    fresh_until: str = "",
) -> StartChoice:
    """Choose the weights that a policy's round starts from.

    It is the live version if the version or the round learns from the policy's own answers, which are no signals, or if
    the base has other tokens.

    Args:
        algorithm: What the round learns by, as the settings name it. Other arguments are those of `choose_start`.
    """
    growth = 0.0 if algorithm in ONLINE_ALGORITHMS else growth
    chosen = choose_start(store, live, signals, growth, rows_through, fresh_until, POLICY)
    base, parent = (store.manifest(POLICY, str(each)) for each in (chosen.version, live))
    if not has_same_tokens(base, parent):
        return StartChoice(live, False, f"policy {chosen.version} has other tokens than the live one")
    if chosen.is_fresh and (own := learned_from_own_answers(store, POLICY, live)) is not None:
        return StartChoice(live, False, f"policy {own} learned from its own answers, which are no signals")
    return chosen


def begun_start(store: ModelStore, model: str, parent: str | None, is_fresh: bool, reason: str) -> StartChoice:
    """Return the start that a round has begun to train from, for reasons that may not hold any more."""
    return StartChoice(untrained_version(store, model, parent) if is_fresh else parent, is_fresh, reason)


def _signals_of_last_fresh(store: ModelStore, model: str, live: str, rows_through: RowsThrough) -> int:
    """Return how many of the signals that the line's last start from the base learned are still in the ledger.

    It is the number that the live version notes if the store does not remember the version of that start.
    """
    noted = store.manifest(model, live).notes.get(FRESH_SIGNALS, "")
    if not noted.isdecimal():
        return 0
    for manifest in line_of(store, model, live):
        if _START in manifest.notes and manifest.data is not None:
            return min(int(noted), rows_through(manifest.data.last_stream_id))
    return int(noted)


def fresh_records(kept: Sequence[_Record], newest: int, older: int, seed: int) -> Sequence[_Record]:
    """Return what a round that starts from the base learns: the newest records, and a sample of the others.

    Args:
        kept: All records that are kept, in stream order.
        newest: Most of the newest ones.
        older: Most of the others. Each has the same chance.
        seed: Decides which.
    """
    rest, new = kept[: max(0, len(kept) - newest)], kept[max(0, len(kept) - newest) :]
    drawn = sorted(random.Random(seed).sample(range(len(rest)), min(older, len(rest))))
    return (*(rest[i] for i in drawn), *new)


def note_start(chosen: StartChoice, signals: int) -> dict[str, str]:
    """Return what a manifest says of a start, if it was a fresh one with so many signals in the ledger."""
    return {FRESH_SIGNALS: str(signals), _START: chosen.reason} if chosen.is_fresh else {}


def learned_from_own_answers(store: ModelStore, model: str, version: str) -> str | None:
    """Return the last version of a line, since its last start from the base, that an online algorithm made.

    What such a version learned is in no signal, so that a start from the base would lose it.
    """
    for manifest in line_of(store, model, version):
        if manifest.notes.get("method") in ONLINE_ALGORITHMS:
            return manifest.version
        if _START in manifest.notes:
            return None
    return None


def untrained_version(store: ModelStore, model: str, version: str | None) -> str | None:
    """Return the export from which the version descends; None if it was pruned or there never was one."""
    if version is None:
        return None
    first = first_of_line(store, model, version)
    return first.version if first.parent is None and first.data is None else None
