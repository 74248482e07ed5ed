"""Exports a model of real widths, and says what that takes: peak memory, seconds, sizes, and how it loads and scores.

The base is a sequence classifier of Qwen3's shape with random weights: few layers, but the embedding of an 8B model,
whose one tensor exceeds 2 GB in float32. Its checkpoint is sharded. The export and the load run in processes of their
own, whose largest resident set is reported; files that they map into memory count in it.

    python tests/bench/big_export.py --precision bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import work_directory

GB = 1e9
_HEAD_WIDTH, _KEY_HEADS = 128, 8
_EXPORT = "import sys; from rewardloop_trainer.commands.export import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    options = _options()
    if options.load:
        print(json.dumps(_loaded(options.load)))
        return
    with work_directory(options.work) as work:
        base = work / f"base-{options.layers}x{options.hidden}-{options.vocabulary}-{options.stored}"
        if not (base / "config.json").exists():
            save_base(base, options.layers, options.hidden, options.vocabulary, options.stored)
        stored = _size(base)
        print(f"{platform.machine()}, {os.cpu_count()} cores; checkpoint {stored / GB:.2f} GB in {options.stored}")
        store = work / f"store-{time.time_ns()}"
        flags = ["--base", str(base), "--store", str(store), "--precision", options.precision]
        command = [sys.executable, "-c", _EXPORT]
        run = _measured([*command, *flags])
        print(
            f"export in {options.precision}: {run.seconds:.0f} s, {run.cpu_s:.0f} s of CPU; "
            f"peak {run.peak / GB:.2f} GB ({run.peak / stored:.2f} of the checkpoint), "
            f"without mapped files {run.own / GB:.2f} GB ({run.own / stored:.2f})"
        )
        version = store / "reward" / "1"
        for file in sorted(p for p in version.rglob("*") if p.stat().st_size > 1e6):
            print(f"  {file.relative_to(version)}: {file.stat().st_size / GB:.2f} GB")
        run = _measured([sys.executable, __file__, "--load", str(store)])
        found = json.loads(run.said.splitlines()[-1])
        print(
            f"load {found['load_s']:.1f} s, after {found['hash_s']:.1f} s of hashing; "
            f"first score {found['score_s']:.2f} s, peak {run.peak / GB:.2f} GB; score {found['score']:.5f}"
        )
        if options.work is None or not options.keep:
            subprocess.run(["rm", "-r", str(store)], check=True)


def save_base(directory: Path, layers: int, hidden: int, vocabulary: int, stored: str) -> None:
    """Write a random sequence classifier of Qwen3's shape, one shard for the embedding and one for each layer."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    dtype = getattr(torch, stored)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, shapes in enumerate(_shards(layers, hidden, vocabulary)):
        file = f"model-{number + 1:05}-of-{layers + 2:05}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=dtype)
            if len(shape) == 1
            else torch.empty(shape, dtype=dtype).normal_(std=0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, directory / file, {"format": "pt"})
        places |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    _save_tokenizer(directory, vocabulary)
    (directory / "config.json").write_text(json.dumps(_config(layers, hidden, vocabulary, stored)))


def _shards(layers: int, hidden: int, vocabulary: int) -> Iterator[dict[str, tuple[int, ...]]]:
    yield {"model.embed_tokens.weight": (vocabulary, hidden)}
    keys, wide = min(_KEY_HEADS * _HEAD_WIDTH, hidden), 3 * hidden
    for layer in range(layers):
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_norm": (_HEAD_WIDTH,),
            "self_attn.k_norm": (_HEAD_WIDTH,),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    yield {"model.norm.weight": (hidden,), "score.weight": (1, hidden)}


def _config(layers: int, hidden: int, vocabulary: int, stored: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForSequenceClassification"],
        "model_type": "qwen3",
        "dtype": stored,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // _HEAD_WIDTH,
        "num_key_value_heads": min(_KEY_HEADS, hidden // _HEAD_WIDTH),
        "head_dim": _HEAD_WIDTH,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "tie_word_embeddings": False,
    }


def _save_tokenizer(directory: Path, vocabulary: int) -> None:
    """A word is a token, and the words are numbers, so that every row of the embedding can be asked for."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {str(i): i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(directory)


def _loaded(store: Path) -> dict[str, float]:
    """Load version 1 as a server does, and score one pair of 64 tokens."""
    from rewardloop.formats.store import ModelStore
    from rewardloop.formats.text import Encoded
    from rewardloop_server.device.choose import Device
    from rewardloop_server.loading.sessions import SessionPool
    from rewardloop_server.observe.metrics import ServerMetrics

    models = ModelStore(store)
    pool = SessionPool(models, Device("cpu", os.cpu_count() or 1, spin=False), ServerMetrics())
    started = time.monotonic()
    manifest, directory = models.manifest("reward", 1), models.fetch("reward", 1)
    hashed = time.monotonic()
    model = pool.load(manifest, directory)
    loaded = time.monotonic()
    logits, _ = model.run([Encoded(list(range(3, 67)), None, False, 32, 32)])
    scored = time.monotonic()
    return {
        "hash_s": hashed - started,
        "load_s": loaded - hashed,
        "score_s": scored - loaded,
        "score": float(logits.mean()),
    }


@dataclass(frozen=True, slots=True)
class _Run:
    """A process that has ended.

    Attributes:
        said: What it printed.
        seconds: How long it took.
        cpu_s: Seconds of all cores together.
        peak: Its largest resident set in bytes, with what it maps of files.
        own: Its largest memory without that, which the system cannot take back; looked at twice a second.
    """

    said: str
    seconds: float
    cpu_s: float
    peak: float
    own: float


def _measured(command: list[str]) -> _Run:
    started, own = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        ended = 0
        while not ended:
            time.sleep(0.5)
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            own = max(own, float(found[1]) * 1024 if found else 0.0)
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(code)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{command[1]} ended with {process.returncode}")
    return _Run(said, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, own)


def _size(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.glob("*.safetensors"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="default 2; an 8B model has 36")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--stored", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="of the base")
    parser.add_argument("--precision", default="float32", help="of the exported graph")
    parser.add_argument("--work", type=Path, default=None, help="where the base is kept for the next run")
    parser.add_argument("--keep", action="store_true", help="keep the exported version in --work too")
    parser.add_argument("--load", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
