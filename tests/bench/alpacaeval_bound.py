"""What can be had on AlpacaEval's held-out judgements without judging an answer, and what length trades.

    python tests/bench/alpacaeval_bound.py --shared ../shared/data

In each pair one answer is GPT-4 Turbo's, the reference, which won 0.80 of the training pairs. The first rows know which
answer that is and which model wrote the other one, as no reward model does; a strength of each model is fitted on the
training pairs. The last rows read phrases alone (`rewardloop_reward/phrases.py`), without a trunk. Rows with a penalty
take it off for each unit of log length, in deviations of the margins, to see what answers that are shorter and won
cost.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arguments as options
import minilm
import torch
from curve_data import pandalm, read_rows
from torch import Tensor
from torch.nn.functional import softplus

from rewardloop.formats.text import Encoded, Encoder, Turn
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.weights.length_balance import length_weights
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.linear_start.counts import count_phrases
from rewardloop_trainer.reward.model import RewardModel

_PENALTIES = (0.0, 0.25, 0.5, 1.0)
_STEPS = 60
_STRENGTH_RIDGE, _PHRASE_RIDGE = 0.3, 100.0
_LENGTH = 512


def fitted(features: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """The weights (d,) with the least Bradley-Terry loss of pairs whose differences are ``features`` (n, d)."""
    found = torch.zeros(features.shape[1], 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (softplus(-(features @ found)).squeeze(1) * weight).sum() + ridge / 2 * found.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return found.detach()


def known(rows: Sequence[dict[str, Any]], models: Sequence[str], *, has_models: bool) -> Tensor:
    """Of each pair, whether the reference won (1) or lost (-1), and the same in the column of the other model."""
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        texts[row["prompt"]].update((row["chosen"], row["rejected"]))
    reference = {prompt: counts.most_common(1)[0][0] for prompt, counts in texts.items()}
    found = torch.zeros(len(rows), 1 + len(models))
    for i, row in enumerate(rows):
        sign = 1.0 if row["chosen"] == reference[row["prompt"]] else -1.0
        found[i, 0] = sign
        if has_models:
            found[i, 1 + models.index(row["models"][1])] = sign
    return found


def log_ratios(texts: Sequence[tuple[str, str]]) -> Tensor:
    return torch.tensor([math.log((len(chosen) + 1) / (len(rejected) + 1)) for chosen, rejected in texts])


def show(name: str, margins: Tensor, ratios: Tensor, test: str) -> None:
    for penalty in _PENALTIES:
        left = margins / margins.std() - penalty * ratios
        right = (left > 0).float() + 0.5 * (left == 0).float()
        print(f"| {test} | {name} | {penalty:g} | {right.mean():.3f} | {right[ratios < 0].mean():.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="directory of people's data")
    parser.add_argument("--work", type=Path, default=None, help="where MiniLM is kept, whose tokens are read")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (read_rows(asked.shared / f"alpacaeval_{part}.jsonl.gz") for part in ("train", "test"))
    texts = [[(row["chosen"], row["rejected"]) for row in rows] for rows in (train, test)]
    of_train, of_test = (log_ratios(each) for each in texts)
    balance = torch.tensor(length_weights(of_train.double().numpy())).float()
    weights = (("", torch.ones(len(train))), (", balanced by length", balance))
    models = sorted({row["models"][1] for row in train})
    print("| test | what is known | penalty | agreement | where the shorter won |")
    print("| --- | --- | --- | --- | --- |")
    for has_models, name in ((False, "which is the reference"), (True, "the reference and the other model")):
        seen, unseen = (known(rows, models, has_models=has_models) for rows in (train, test))
        for what, weight in weights:
            margins = (unseen @ fitted(seen, weight, _STRENGTH_RIDGE)).squeeze(1)
            show(f"{name}{what}", margins, of_test, "alpacaeval")
    people = pandalm(read_rows(asked.shared / "pandalm_annotations.jsonl.gz"))
    with options.work_directory(asked.work) as work:
        base = minilm.fetch(work)
        tokenizer = load_tokenizer(str(base))
        layout = reward_layout(tokenizer, RewardModel.from_base(base))
        encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, _LENGTH)

    def encoded(prompt: str, chosen: str, rejected: str) -> tuple[Encoded, Encoded]:
        return encoder.pair((Turn("user", prompt),), chosen), encoder.pair((Turn("user", prompt),), rejected)

    said = [encoded(row["prompt"], row["chosen"], row["rejected"]) for rows in (train, test) for row in rows]
    said += [encoded(pair.prompt[0].content, pair.chosen, pair.rejected) for pair in people]
    # Phrases of the test alone keep a weight of 0.
    features = count_phrases(said).differences
    parts = torch.split(torch.arange(len(said)), [len(train), len(test), len(people)])
    of_people = log_ratios([(pair.chosen, pair.rejected) for pair in people])
    for what, weight in weights:
        found = fitted(features.index_select(0, parts[0]).coalesce(), weight, _PHRASE_RIDGE)
        margins = torch.sparse.mm(features, found).squeeze(1)
        show(f"phrases{what}", margins[parts[1]], of_test, "alpacaeval")
        show(f"phrases{what}", margins[parts[2]], of_people, "pandalm")


if __name__ == "__main__":
    main()
