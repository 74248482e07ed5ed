"""Which families of transformers work: each one's tiny random base is exported, served and compared with transformers.

    python tests/bench/families.py [--only NAME ...] [--out docs/models/index.md]

A reward model scores 20 conversations with two answers each, and a policy answers 8 greedily (`support/families`). Ids
are compared with `apply_chat_template` or the tokenizer's encoding of pairs, logits and texts with the family's own
classes. The exit status is 1 if a family that has to be right is not, or one that has to be refused is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table
from support.families.table import FAMILIES, Family


@dataclass(frozen=True, slots=True)
class Row:
    """One family as one kind of model: the cells of its row, and whether it did what it must."""

    family: Family
    model: str
    outcome: str
    ids: str
    logits: str
    order: str
    texts: str
    alone: str
    is_expected: bool
    is_right: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a family's name; may be given again")
    parser.add_argument("--out", type=Path, help="write the page here")
    parser.add_argument("--jobs", type=int, default=1, help="families that are tried at once")
    options = parser.parse_args()
    chosen = [family for family in FAMILIES if not options.only or family.name in options.only]
    if unknown := set(options.only) - {family.name for family in chosen}:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(tried, chosen):
            rows += found
            for row in found:
                mark = "as expected" if row.is_expected else "NOT AS EXPECTED"
                print(f"{row.family.name} as {row.model}: {row.outcome} ({mark})", file=sys.stderr, flush=True)
    Console(width=200).print(shown(rows))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(rows), encoding="utf-8")
    wrong = [f"{row.family.name} as {row.model}" for row in rows if not row.is_expected]
    right = {row.family.name for row in rows if row.is_right and row.model == "reward"}
    print(f"{len(right)} of {len(chosen)} families are right as reward models; not as expected: {wrong or 'none'}")
    return 1 if wrong else 0


def tried(family: Family) -> list[Row]:
    """Try one family as a reward model and, if it is a decoder, as a policy."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import structlog
    import torch
    from support.families import shown as showing
    from transformers.utils import logging

    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def row(model: str, show: Callable[[Family, Path], showing.Shown], refusal: str) -> Row:
        with tempfile.TemporaryDirectory() as work:
            try:
                found = show(family, Path(work))
            except Exception as error:  # the table says so, and the exit status is 1
                traceback.print_exc()
                found = showing.Shown(failure=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return _row(family, model, found, refusal)

    rows = [row("reward", showing.show_reward, family.reward)]
    return [*rows, row("policy", showing.show_policy, family.policy)] if family.decodes else rows


def _row(family: Family, model: str, found: object, refusal: str) -> Row:
    from support.families.shown import Shown

    assert isinstance(found, Shown)
    is_expected = refusal in found.refusal if refusal and found.refusal else found.is_right and not refusal
    if found.refusal or found.failure:
        outcome = f"refused: {found.refusal}" if found.refusal else f"FAILED: {found.failure}"
        return Row(family, model, outcome, "", "", "", "", "", is_expected, False)
    is_policy = model == "policy"
    return Row(
        family,
        model,
        "right" if found.is_right else "WRONG",
        f"{found.ids_equal}/{found.sequences}",
        "" if is_policy else f"{found.logits:.1e}",
        "" if is_policy else f"{found.same_order:.0%}",
        f"{found.same_texts}/{found.texts}" if is_policy else "",
        f"{found.batched_texts}/{found.texts}" if is_policy else f"{found.alone:.1e}",
        is_expected,
        found.is_right,
    )


_INTRODUCTION = """\
# Families of models

Each family of transformers below was tried with a tiny random base. The base has the family's architecture, a tokenizer
of its kind, and a chat template that behaves as its authors' does. It was exported, served, and compared with
transformers. This page is written by `python tests/bench/families.py --out docs/models/index.md`.

- **ids equal**: sequences whose token ids are those of `apply_chat_template`, or of the tokenizer's encoding of pairs.
- **logits differ by**: the largest difference of a served logit from that of the family's own class.
- **order**: the pairs of answers that are ordered as the family's own class orders them.
- **greedy texts**: the answers that are those of `generate`.
- **batched equals alone**: for a reward model, the largest difference of a logit between all sequences at once and each
  alone; for a policy, the answers that are the same.

A family without a sequence classifier in transformers is tried with new heads on its bare model. `rewardloop export`
refuses a family with the line that is shown.

A decoder whose rotary frequencies depend on the longest text of a batch (longrope, dynamic NTK) reads no more tokens
than it was first trained on, because up to there they do not. Attention windows do not shorten what a reward model
reads. A mixture of experts computes all experts for each token, so its time grows with their number.
"""
HEADS = ("family", "as", "outcome", "ids equal", "logits differ by", "order", "greedy texts", "batched equals alone")


def shown(rows: Sequence[Row]) -> Table:
    table = Table(*HEADS)
    for row in rows:
        style = "" if row.is_expected else "bold red"
        table.add_row(row.family.name, row.model, *_cells(row), style=style)
    return table


def page(rows: Sequence[Row]) -> str:
    """The page for users: the table of families."""
    lines = [_INTRODUCTION, f"| {' | '.join(('family', 'example', *HEADS[1:]))} |", f"|{' --- |' * (len(HEADS) + 1)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("<", "&lt;") for cell in _cells(row)]
        if row.outcome.startswith("refused") and row.family.why:
            cells[0] += f" ({row.family.why})"
        example = f"`{row.family.example}`" if row.family.example else ""
        lines.append(f"| {' | '.join((row.family.name, example, row.model, *cells))} |")
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (row.outcome, row.ids, row.logits, row.order, row.texts, row.alone)


if __name__ == "__main__":
    raise SystemExit(main())
