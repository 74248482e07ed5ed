"""The commands below `rewardloop feedback`. Each loads its code when it is called, so that help stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardloop_cli.server_option import DEFAULT_SERVER, Server

Shape = Annotated[
    str, typer.Option("--format", help="Shape of all rows; 'feedback shapes' lists them. Default: by the keys.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(help="KEY=PATH: where the value of a key is, such as chosen=fields.better. May be repeated."),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Keys that change nothing, with commas between; * for all. May be repeated.")
]
OneBased = Annotated[
    bool | None, typer.Option("--one-based/--zero-based", help="Whether indices count from 1 or from 0.")
]
Ranks = Annotated[
    bool | None,
    typer.Option(
        "--ranks/--best-first", help="Whether a ranking holds the rank of each response, or the order of indices."
    ),
]
Scale = Annotated[str, typer.Option(help="MINIMUM..MAXIMUM of ratings.")]
Verbatim = Annotated[
    bool, typer.Option("--verbatim", help="Take texts as they are, even if they look like whole conversations.")
]

feedback = typer.Typer(
    help="Import and export preference data, take it back, and erase.", rich_markup_mode=None, no_args_is_help=True
)


@feedback.command("import")
def feedback_import(  # noqa: PLR0913  # long: each parameter is an option of the command
    files: Annotated[
        list[str],
        typer.Argument(
            help="JSON lines, a JSON array, CSV, TSV or Parquet, also packed (gz, zst, bz2, xz, zip): a path, a URL"
            " such as hf://datasets/OWNER/NAME/FILE, or - for standard input.",
            metavar="FILE",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how the files are read, with examples, and send nothing.")
    ] = False,
    shape: Shape = "",
    column: Column = None,
    ignore: Ignore = None,
    one_based: OneBased = None,
    ranks: Ranks = None,
    scale: Scale = "",
    verbatim: Verbatim = False,
    count_copies: Annotated[
        bool,
        typer.Option("--count-copies", help="Count equal judgements that name no person as those of different people."),
    ] = False,
    csv_safe: Annotated[
        bool,
        typer.Option("--csv-safe", help="Tables were exported with --csv-safe: take the apostrophes away again."),
    ] = False,
    source: Annotated[str, typer.Option(help="Who judged: human, llm_judge or implicit.")] = "human",
    tag: Annotated[list[str] | None, typer.Option(help="key=value for every signal. May be repeated.")] = None,
    aspect: Annotated[
        str, typer.Option(help="Reward model that learns from rows without an aspect of their own; default: reward.")
    ] = "",
    patience: Annotated[float, typer.Option(help="Seconds to wait while the server or Redis is away.")] = 120.0,
    side_dir: Annotated[Path | None, typer.Option(help="Folder for the progress and the rejected rows.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Ignore the progress of an earlier run.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Record the signals in data files, after a look at all of their rows.

    Rows: {prompt, chosen, rejected} (text or messages), {prompt, completion, label}, and the others of 'feedback
    shapes'. A file whose rows may mean two things is refused, and the message names the option that settles it.
    Exit status: 0 if all rows were recorded, 1 if some were rejected, 2 if a file or the server failed.
    """
    from rewardloop_cli.failures import finish
    from rewardloop_cli.feedback import flags
    from rewardloop_cli.feedback import imports as command
    from rewardloop_data.judgements import Labels

    def run() -> int:
        labels = Labels(flags.parse_source(source), flags.parse_tags(tag or []), flags.parse_aspect(aspect))
        choices = flags.parse_choices(
            named=shape,
            columns=column or [],
            ignored=ignore or [],
            one_based=one_based,
            ranks=ranks,
            scale=scale,
            verbatim=verbatim,
            count_copies=count_copies,
        )
        options = command.ImportOptions(server, labels, choices, patience, side_dir, restart, dry_run, csv_safe)
        return command.run(files, options)

    finish(run)


@feedback.command("shapes")
def feedback_shapes() -> None:
    """List the shapes of rows that are known."""
    from rewardloop_data.shapes.table import SHAPES

    for each in SHAPES:
        print(f"{each.name}: {each.form}: {each.way or each.says}")


@feedback.command("retract")
def feedback_retract(
    import_ids: Annotated[list[str], typer.Argument(help="What the import printed.", metavar="IMPORT_ID")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take the signals of imports back: they leave the ledger, and no model learns from them any more.

    Versions that have learned from them stay as they are.
    """
    from rewardloop_cli.failures import finish
    from rewardloop_cli.feedback import retract as command

    finish(lambda: command.run(import_ids, server))


@feedback.command("erase")
def feedback_erase(
    annotator: Annotated[
        str, typer.Option(help="Person whose signals are erased; - reads the id from standard input.", metavar="ID")
    ] = "",
    generation: Annotated[
        str,
        typer.Option(
            help="Generation to erase with all signals about it; - reads the id from standard input.", metavar="ID"
        ),
    ] = "",
    erasure: Annotated[str, typer.Option(help="Follow an erasure that was begun.", metavar="ID")] = "",
    caller: Annotated[
        str | None,
        typer.Option(help="Caller of --annotator; an empty text means no caller. Default: this id under every caller."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which versions learned from the signals, and erase nothing.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until all holders of signals are done.")
    ] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Erase every signal of a person for good, wherever the deployment keeps it.

    Shows what was erased, the versions that have learned from it, and what is left to do by hand, such as backups.
    Exit status: 0 when it is done, 1 if a holder of signals is not done after --wait-s, 2 if it failed.
    """
    from rewardloop_cli.failures import finish
    from rewardloop_cli.feedback import erase as command

    whose = command.Whose(annotator, generation, erasure, caller)
    run = command.look if dry_run else command.run
    finish(lambda: run(whose, server, wait_s=wait_s, as_json=as_json))


@feedback.command("convert")
def feedback_convert(  # noqa: PLR0913  # long: each parameter is an option of the command
    file: Annotated[str, typer.Argument(help="As 'feedback import' takes it.", metavar="FILE")],
    out: Annotated[Path | None, typer.Option(help="JSONL file to write; default: standard output.")] = None,
    shape: Shape = "",
    column: Column = None,
    ignore: Ignore = None,
    one_based: OneBased = None,
    ranks: Ranks = None,
    scale: Scale = "",
    verbatim: Verbatim = False,
) -> None:
    """Write what a data file says as rows that every command reads without a flag.

    Exit status: 0 if all rows hold a judgement, 1 if some do not, 2 if the file cannot be read or is not clear.
    """
    from rewardloop_cli.failures import finish
    from rewardloop_cli.feedback import convert as command
    from rewardloop_cli.feedback.flags import parse_choices

    def run() -> int:
        choices = parse_choices(
            named=shape,
            columns=column or [],
            ignored=ignore or [],
            one_based=one_based,
            ranks=ranks,
            scale=scale,
            verbatim=verbatim,
            count_copies=False,
        )
        return command.run(file, out, choices)

    finish(run)
