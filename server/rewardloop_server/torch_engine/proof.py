"""Proves at load that the torch model of a version gives the logits of its graph.

The graph is the contract. It runs on the CPU by ONNX Runtime on a few random sequences, and so does the torch model
where it will serve: plain rows together, tree rows by a mask, and a tree row over its prompt's keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rewardloop.formats.manifest import Manifest
from rewardloop.formats.text import Encoded, Format
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.scoring.engine import Runner
from rewardloop_server.scoring.plan import Run

# Largest difference of a logit, as a share of the largest logit of the proof or of 1, that a precision explains.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_TOKENS = 96
_BEYOND = 8  # tokens of one row beyond the narrowest window
_ROWS = 4
_GROUP = 3
_MARKED = 0.1  # share of the tokens at which a step ends, of a model that reads steps


def prove(
    manifest: Manifest, text_format: Format, graph: Runner, found: Runner, vocabulary: int, reach: float, *, loose: bool
) -> float:
    """Return the largest difference of a logit between the graph and the torch model, at whichever place.

    Args:
        manifest: The version's manifest.
        text_format: Its text format.
        graph: Runs the graph.
        found: Runs the torch model.
        vocabulary: Ids are drawn below it.
        reach: The tokens that the narrowest window spans.
        loose: float32 may be rounded to TF32.

    Raises:
        NotLoadable: The difference is above the tolerance of the precision.
    """
    where = f"{manifest.model} {manifest.version}"
    share = TOLERANCE["float16"] if loose and manifest.precision == "float32" else TOLERANCE[manifest.precision]
    largest = 0.0
    for rows, run in _runs(manifest, text_format, vocabulary, reach, is_decoder=found.signature.is_decoder):
        feeds = graph.lay_out(rows, run, text_format.pad)
        expected = graph.logits(feeds, graph.options(), place=0, alone=True)
        if not np.isfinite(expected).all():
            raise NotLoadable(f"{where} does not load: its graph gives logits that are not finite")
        feeds = found.lay_out(rows, run, text_format.pad)
        for place, name in enumerate(found.places):
            logits = found.logits(feeds, found.options(), place=place, alone=True)
            difference = np.abs(logits - expected).max() if logits.shape == expected.shape else np.inf
            most = share * max(1.0, float(np.abs(expected).max()))
            if not difference <= most:
                raise NotLoadable(
                    f"{where} does not load: on {name} the logits of its torch model differ from those of its graph by"
                    f" {difference:.3g}, above {most:.3g}, the tolerance of {manifest.precision}; --engine onnx runs"
                    " the graph"
                )
            largest = max(largest, float(difference))
    return largest


def _runs(
    manifest: Manifest, text_format: Format, vocabulary: int, reach: float, *, is_decoder: bool
) -> Iterator[tuple[list[Encoded], Run]]:
    chance = np.random.default_rng(0)
    longest = min(manifest.max_length, _TOKENS)
    lengths = [longest, *chance.integers(1, longest + 1, _ROWS - 1).tolist()]
    marks = text_format.steps is not None and text_format.steps.is_marked

    def drawn(count: int) -> list[int]:
        ids: list[int] = chance.integers(0, vocabulary, count).tolist()
        return [-1 - each if marks and chance.random() < _MARKED else each for each in ids]

    def row(prompt: Sequence[int], response: list[int]) -> Encoded:
        types = [0] * len(prompt) + [1] * len(response) if text_format.segment_ids else None
        return Encoded([*prompt, *response], types, False, len(response), len(prompt))

    rows = [row(drawn(length // 2), drawn(length - length // 2)) for length in lengths]
    yield rows, Run(tuple((i,) for i in range(_ROWS)), longest, 0.0)
    if longest <= reach < manifest.max_length:
        length = min(int(reach) + _BEYOND, manifest.max_length)
        yield [row([], drawn(length))], Run(((0,),), length, 0.0)
    if not is_decoder or longest < 4:
        return
    for groups in (2, 1):
        items, rows, most = list[tuple[int, ...]](), list[Encoded](), 0
        for _ in range(groups):
            prompt = drawn(longest // 2)
            sizes = chance.integers(1, longest - len(prompt) + 1, _GROUP).tolist()
            items.append(tuple(range(len(rows), len(rows) + _GROUP)))
            rows += [row(prompt, drawn(size)) for size in sizes]
            most = max(most, len(prompt) + sum(sizes))
        yield rows, Run(tuple(items), most, 0.0)
