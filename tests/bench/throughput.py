"""Saturated throughput through gRPC over the ceiling of bare sessions, same weights, texts, precision and cores.

The ceiling is the fastest way of several (`ceiling.py`), which are tried first. Each round measures it, then Score with
many callers, ScoreBatch and ScoreStream, and it again; rounds are interleaved in one run, so that a machine that slows
down slows all.

    python tests/bench/throughput.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import arguments
import models
import service
from ceiling import Ceiling

COLUMNS = ("round", "what", "pairs/s", "tokens/s", "of ceiling", "p50 ms", "p99 ms", "generator CPU")
RPCS = {
    "Score": ("--rpc", "score", "--callers", "64"),
    "ScoreBatch": ("--rpc", "batch", "--batch", "32", "--callers", "4"),
    "ScoreStream": ("--rpc", "stream", "--callers", "128"),
}


def measure(work: Path, data: Path | None, mix: str, precision: str, options: argparse.Namespace) -> None:
    store = work / f"minilm-{precision}"
    manifest = service.export(models.encoder_base(work), store, max_length=256, precision=precision)
    pairs = models.pairs(mix, options.pairs, data)
    texts = models.write_rows(work / f"{mix}.jsonl", models.as_groups(pairs))
    with service.serving(store, *options.serve_args.split()) as served:
        ceiling = Ceiling(served.version_directory, manifest, pairs)
        tried = ceiling.choose(options.seconds)
        lengths = ceiling.lengths
        print(
            f"\n{mix}, {precision}: {len(pairs)} pairs, median {statistics.median(lengths):.0f} tokens, "
            f"mean {statistics.mean(lengths):.0f}"
        )
        for way, rate in tried.items():
            print(f"{way}: {rate.tokens_per_s:.0f} tokens/s{' (the ceiling)' if way == ceiling.way else ''}")
        rows: list[list[object]] = [
            ["round", "what", "pairs/s", "tokens/s", "of ceiling", "p50 ms", "p99 ms", "gen CPU"]
        ]
        shares: dict[str, list[float]] = {name: [] for name in RPCS}
        for number in range(1, options.rounds + 1):
            before = ceiling.measure(options.seconds)
            runs = {name: _load(served, texts, options, *rpc) for name, rpc in RPCS.items()}
            after = ceiling.measure(options.seconds)
            bare = (before.tokens_per_s + after.tokens_per_s) / 2
            rows.append([number, "bare, before", before.pairs_per_s, before.tokens_per_s, "", "", "", ""])
            for name, run in runs.items():
                shares[name].append(run["tokens_per_s"] / bare)
                figures = [run["responses_per_s"], run["tokens_per_s"], shares[name][-1]]
                figures += [run["latency_ms"]["p50"], run["latency_ms"]["p99"], run["generator_cpu_share"]]
                rows.append([number, name, *figures])
                if run["failures"]:
                    rows.append([number, f"{name} failures", run["failures"], "", "", "", "", ""])
            rows.append([number, "bare, after", after.pairs_per_s, after.tokens_per_s, "", "", "", ""])
        service.print_rows(rows)
        for name, values in shares.items():
            print(f"{mix}, {precision}, {name}: {statistics.median(values):.3f} of the ceiling (tokens/s, median)")


def _load(served: service.Service, texts: Path, options: argparse.Namespace, *rpc: str) -> service.Json:
    common = ["--texts", str(texts), "--seconds", str(options.seconds), "--warm-up", str(options.warm_up)]
    return service.load(served, *common, *rpc)


def main() -> None:
    parser = arguments.parser(__doc__, seconds=10.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--mixes", default="real,short")
    parser.add_argument("--data", type=Path, default=None, help="directory with alpacaeval_test.jsonl.gz")
    parser.set_defaults(precision="float32,int8")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        for precision in options.precision.split(","):
            for mix in options.mixes.split(","):
                try:
                    measure(work, options.data, mix, precision, options)
                except service.NotRun as reason:
                    print(f"\n{mix}, {precision}: not run: {reason}")


if __name__ == "__main__":
    main()
