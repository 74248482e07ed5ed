"""Dawid and Skene's model beside crowd-kit's, on the same votes: simulated ones, and people's on arguments."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from support.crowds import votes_of_crowd

from rewardloop_trainer.annotators.dawid_skene import dawid_skene
from rewardloop_trainer.annotators.votes import TIE, Votes, make_votes

pd = pytest.importorskip("pandas", reason="install the extra parity")
aggregation = pytest.importorskip("crowdkit.aggregation.classification.dawid_skene", reason="install the extra parity")

ARGUMENTS = Path(__file__).resolve().parents[2].parent / "shared/data/ukpconvarg1_pairs.jsonl.gz"


def compare(votes: Votes, classes: int) -> None:
    """Compare both after the same number of steps, as the likelihood is flat near its maximum."""
    ours = dawid_skene(votes, classes, tolerance=-1)
    rows = {"task": votes.item, "worker": votes.person, "label": votes.choice}
    theirs = aggregation.DawidSkene(n_iter=100, tol=-1)
    theirs.fit(pd.DataFrame(rows))
    labels = list(range(classes))
    np.testing.assert_allclose(ours.posterior, theirs.probas_.sort_index()[labels].to_numpy(), atol=1e-3)
    # crowd-kit's rows are (person, what was said), and its columns what is true.
    for (person, said), row in theirs.errors_.iterrows():
        np.testing.assert_allclose(ours.confusion[person, :, said], row[labels].to_numpy(), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_simulated_crowds_have_the_same_posteriors_and_matrices(seed: int) -> None:
    votes, _ = votes_of_crowd([0.9] * 6 + [0.75] * 4 + [0.5] * 4 + [0.2], 300, 5, seed)
    compare(votes, 2)


def test_peoples_votes_on_arguments_have_the_same_posteriors_and_matrices() -> None:
    if not ARGUMENTS.exists():
        pytest.skip(f"{ARGUMENTS}: people's votes are not on this machine")
    rows = []
    with gzip.open(ARGUMENTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for said in row["annotations"]:
                rows.append((said["annotator"], row["id"], TIE if said["choice"] == "tie" else said["choice"]))
    votes = make_votes(rows)
    compare(votes, 3)
