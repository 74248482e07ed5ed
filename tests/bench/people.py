"""How far people agree, and what their reliability is worth in predicting what the next person says.

    python tests/bench/people.py --shared ../shared/data

Alpha is measured on arguments and on one-liners. On the arguments, whose annotators are known, the last vote on each
pair is predicted from the earlier ones: a fifth of all votes, in the order of time. Compared are the majority vote,
Dawid and Skene's model, reliability as the trainer estimates it, and the same beside a Bradley-Terry model of the
responses. Each gives a probability; the intervals are over pairs.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from rewardloop_trainer.annotators.agreement import agreement_of, krippendorff, majority, self_consistency
from rewardloop_trainer.annotators.crowd import prior_of
from rewardloop_trainer.annotators.crowd_file import CrowdVotes
from rewardloop_trainer.annotators.dawid_skene import dawid_skene
from rewardloop_trainer.annotators.reliability import estimate_reliability
from rewardloop_trainer.annotators.votes import TIE, Floats, Votes, item_of, make_votes

_RESAMPLES = 2_000


def read(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def argument_votes(rows: list[Any]) -> Votes:
    """The votes on arguments in the order of time."""
    said = []
    for row in rows:
        one, other = row["responses"]
        item = item_of(row["prompt"], one, other)
        for each in row["annotations"]:
            choice = TIE if each["choice"] == "tie" else each["choice"] if item[1] == one else 1 - each["choice"]
            said.append((each["t"], (each["annotator"], item, choice)))
    return make_votes([row for _, row in sorted(said, key=lambda each: each[0])])


def split(votes: Votes) -> tuple[Votes, Votes]:
    """The last strict vote on each pair, if it has three before it, and all the earlier ones."""
    strict = votes.strict
    last: dict[int, int] = {}
    for place, item in enumerate(strict.item.tolist()):
        last[item] = place
    counts = np.bincount(strict.item, minlength=len(strict.items))
    is_test = np.zeros(len(strict), dtype=bool)
    is_test[[place for item, place in last.items() if counts[item] >= 3]] = True
    return strict.where(~is_test), strict.where(is_test)


def predictions(train: Votes, test: Votes) -> dict[str, Floats]:
    """The probability that each test vote is for the first response."""
    shares = majority(train)
    counts = np.bincount(train.item, minlength=len(train.items))
    # One vote of either kind is added, so that three equal votes are no certainty.
    smoothed = (shares[:, 0] * counts + 1) / (counts + 2)
    seen = np.flatnonzero(counts)
    number = np.full(len(counts), -1)
    number[seen] = np.arange(len(seen))
    kept = Votes(
        train.people, tuple(train.items[i] for i in seen), train.person, number[train.item], train.choice, train.weight
    )
    found = {"majority vote": smoothed[test.item]}
    model = dawid_skene(kept, pseudo=4.0)
    truth = model.posterior[number[test.item], 0]
    told = np.einsum("nk,nk->n", np.stack([truth, 1 - truth], axis=1), model.confusion[test.person, :, 0])
    found["Dawid and Skene"] = told
    alone = CrowdVotes(train, np.full(len(train), np.nan), (), ())
    for name, prior in (("reliability", None), ("reliability and responses", prior_of(alone, {}))):
        known = estimate_reliability(train, prior)
        accuracy = np.array([known.of(person) for person in test.people])[test.person]
        first = known.truth[test.item]
        found[name] = first * accuracy + (1 - first) * (1 - accuracy)
        print(f"{name}: a new person is right in {known.crowd:.3f}; {known.compared:.2f} of the votes are compared")
    return found


def bounds(values: Floats) -> str:
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="directory of people's data")
    shared = parser.parse_args().shared
    humour = np.array([row["votes"] for row in read(shared / "humour_pairs.jsonl.gz")], dtype=np.float64)
    print("one-liners:", krippendorff(humour))
    # The file has no pair on which as many people voted for either, so that people seem to agree more than they do.
    print("one-liners of an odd number of votes:", krippendorff(humour[humour.sum(1) % 2 == 1]))
    votes = argument_votes(read(shared / "ukpconvarg1_pairs.jsonl.gz"))
    print("arguments, ties as a third value:", agreement_of(votes))
    print("arguments, without ties:", agreement_of(votes.strict))
    print("arguments, asked again:", self_consistency(votes))
    train, test = split(votes)
    is_first = (test.choice == 0).astype(np.float64)
    found = predictions(train, test)
    losses = {n: -(is_first * np.log(p) + (1 - is_first) * np.log(1 - p)) for n, p in found.items()}
    right = {n: np.where(p == 0.5, 0.5, (p > 0.5) == (is_first == 1)) for n, p in found.items()}
    print(f"{len(test):,} votes predicted from {len(train):,}\n")
    print("| predicted by | accuracy | less majority vote [95%] | loss, nats | less majority vote [95%] |")
    print("| --- | --- | --- | --- | --- |")
    for name in found:
        gain, less = right[name] - right["majority vote"], losses[name] - losses["majority vote"]
        print(f"| {name} | {right[name].mean():.4f} | {bounds(gain)} | {losses[name].mean():.4f} | {bounds(less)} |")


if __name__ == "__main__":
    main()
