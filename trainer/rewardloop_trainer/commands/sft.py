"""``rewardloop sft``: trains a base on a file of conversations, and writes it as a Hugging Face directory.

Several processes train it together under torchrun:
``torchrun --nproc-per-node 2 -m rewardloop_trainer.commands.sft --base ... --data ... --out ...``
Exit status: 0 if all went well, 1 if some rows were rejected, 2 if nothing was written.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardloop.process.settings import parse
from rewardloop_trainer.policy.sft_settings import SftRunSettings

if TYPE_CHECKING:
    from rewardloop.formats.text import Encoder
    from rewardloop_data.side_files import Rejection
    from rewardloop_trainer.commands.progress import Stages
    from rewardloop_trainer.data.dialogues import Dialogue
    from rewardloop_trainer.policy.sft import SftOutcome, SftProgress

PROG = "rewardloop sft"
_SHOWN_REJECTIONS = 10
_EVERY_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train the base that the flags name and print one line. Returns the exit status."""
    settings = parse(SftRunSettings, sys.argv[1:] if argv is None else argv, PROG)
    # Imported here, so that --help does not load torch.
    from rewardloop_trainer.commands.progress import Stages

    stages = Stages(PROG)
    stages("loading torch")
    from rewardloop.process.log import configure_logging
    from rewardloop_data.source_file import UnreadableFile
    from rewardloop_trainer.data.base_text import UnusableBase
    from rewardloop_trainer.learning.checkpoint import TrainingStopped
    from rewardloop_trainer.learning.world import joined

    configure_logging(settings.log_level, settings.log_format)
    try:
        with joined():
            return run(settings, stages)
    except TrainingStopped as stopped:
        _say(f"{stopped}; the same command goes on from there")
    except (UnreadableFile, UnusableBase, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        _say(" ".join(str(error).split()))
    return 2


def run(settings: SftRunSettings, stages: Stages) -> int:
    """Read, train and write. Under torchrun, every process makes this call, and the first one writes.

    Returns 0, or 1 if rows were rejected. Raises the errors that `main` reports.
    """
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from rewardloop_data.source_file import SourceFile
    from rewardloop_trainer.commands.progress import Beginning
    from rewardloop_trainer.data.base_path import check_base
    from rewardloop_trainer.data.files.sft_rows import read_dialogues
    from rewardloop_trainer.data.pools.sides import split_at_once
    from rewardloop_trainer.learning import checkpoint
    from rewardloop_trainer.learning.world import World
    from rewardloop_trainer.policy.sft import train_sft
    from rewardloop_trainer.policy.start import finished

    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]  # a base that does not load whole is refused in our words
    started = time.monotonic()
    check_base(settings.base, stages)
    out = settings.out
    _refuse_to_replace(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    stages(f"reading {settings.data}")
    dialogues, rejections = read_dialogues(SourceFile.of(settings.data).lines(), settings.learn)
    world = World()
    kept = _keep_aside(out, settings.data, rejections) if world.is_first else out
    sides: dict[str, list[Dialogue]] = {"train": [], "heldout": []}
    split = split_at_once([(dialogue.turns, None) for dialogue in dialogues], settings.heldout_share)
    for dialogue, side in zip(dialogues, split, strict=True):
        if side is not None:
            sides[side].append(dialogue)
    if left_out := split.count(None):
        _say(f"{left_out} rows are left out: they link a held-out question to one of training")
    if not sides["train"]:
        raise ValueError(f"{settings.data}: has no row to train on")
    checkpoints = out.with_name(f".{out.name}.checkpoints")
    on_start = Beginning(checkpoints, stages)
    stages(f"loading {settings.base}")
    model, tokenizer, encoder, stored = _load(settings)
    if sides["heldout"]:
        stages(f"measuring on {len(sides['heldout']):,} held-out conversations")
    with _bar(settings.data.name, is_shown=world.is_first) as on_progress, _stop_signals() as should_stop:
        outcome = train_sft(
            model,
            encoder,
            sides["train"],
            settings,
            on_progress,
            heldout=sides["heldout"],
            checkpoint_dir=checkpoints,
            should_stop=should_stop,
            on_start=on_start,
        )
    if world.is_first:
        write(out, finished(model, settings.base, settings).to(stored), tokenizer)
        checkpoint.clear(checkpoints)
        print(_summary(out, outcome, len(rejections), kept, time.monotonic() - started), flush=True)
    world.wait()
    return int(bool(rejections))


def _refuse_to_replace(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already")


def write(out: Path, model: Any, tokenizer: Any) -> None:
    """Write the Hugging Face directory ``out``, which appears whole or not at all. Raises OSError and ValueError."""
    from rewardloop_trainer.learning.write_whole import write_whole

    def fill(directory: Path) -> None:
        model.save_pretrained(directory, max_shard_size="1TB")
        tokenizer.save_pretrained(directory)

    _refuse_to_replace(out)
    write_whole(out, fill)


def _load(settings: SftRunSettings) -> tuple[Any, Any, Encoder, Any]:
    """Load the base. Returns its model to be trained, its tokenizer, its encoder, and the type that it is stored in.

    Raises:
        UnusableBase: If it cannot be loaded.
        UnusableDevice: If this machine cannot train it as the settings ask.
    """
    import torch

    from rewardloop.formats.text import Encoder
    from rewardloop_trainer.data.base_layout import decoder_layout
    from rewardloop_trainer.data.base_text import load_tokenizer, longest_input
    from rewardloop_trainer.policy.base_policy import PolicyBase
    from rewardloop_trainer.policy.start import load_to_learn

    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    base = PolicyBase.of(settings.base)
    tokenizer, stored = load_tokenizer(base.tokenizer), base.config.dtype or torch.float32
    longest = longest_input(base.config, tokenizer)
    length = min(settings.max_length or longest, longest)
    tokens = settings.micro_batch_tokens
    model = load_to_learn(settings.base, settings, "sft", tokens=tokens, longest=min(length, tokens))
    encoder = Encoder(
        tokenizer.backend_tokenizer, decoder_layout(tokenizer, "write", choice=settings.layout).text_format, length
    )
    if settings.layout == "plain":
        tokenizer.chat_template = None  # it is saved with the model, which an export must lay out as training did
    return model, tokenizer, encoder, stored


def _keep_aside(out: Path, data: Path, rejections: Sequence[Rejection]) -> Path:
    """Write the rejected rows beside the output and print the first ones. Returns the file's path."""
    from rewardloop_data.side_files import keep_aside

    path = out.with_name(f"{out.name}.rejected.jsonl")
    path.unlink(missing_ok=True)
    if rejections:
        keep_aside(path, rejections)
    for rejection in rejections[:_SHOWN_REJECTIONS]:
        _say(f"{data.name}:{rejection.line}: {rejection.reason}")
    if len(rejections) > _SHOWN_REJECTIONS:
        _say(f"{len(rejections)} rows were rejected: {path} has all of them")
    return path


@contextmanager
def _bar(name: str, *, is_shown: bool) -> Iterator[Callable[[SftProgress], None]]:
    """Show a progress bar over the steps on standard error, or a line every 10 seconds if that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    said_s = time.monotonic()

    def show(done: SftProgress) -> None:
        nonlocal said_s
        bar.update(task, completed=done.step, total=done.steps, loss=done.loss)
        if is_shown and not console.is_terminal and time.monotonic() - said_s >= _EVERY_S:
            said_s = time.monotonic()
            _say(f"step {done.step:,} of {done.steps:,}, loss {done.loss:.3f}")

    with Progress(*columns, console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar:
        task = bar.add_task(name, total=None, loss=float("nan"))
        yield show


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came. A second signal ends the process as usual."""
    stopped = False

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(out: Path, outcome: SftOutcome, rejected: int, kept: Path, seconds: float) -> str:
    aside = f" (kept in {kept})" if rejected else ""
    measured = (
        f"held-out perplexity {outcome.perplexity_before:.3g} -> {outcome.perplexity_after:.3g}"
        f" ({outcome.heldout} examples)"
        if outcome.heldout
        else "nothing held out"
    )
    return (
        f"{out}: {outcome.examples} examples, {outcome.dropped} too long, {rejected} rows rejected{aside},"
        f" {outcome.steps} steps, loss {outcome.last_loss:.3f} nats a token, {measured}, {seconds:.1f} s"
    )


def _say(message: str) -> None:
    print(f"{PROG}: {message}", file=sys.stderr)


if __name__ == "__main__":
    status = main()
    from rewardloop_trainer.learning.world import leave

    leave(status)
