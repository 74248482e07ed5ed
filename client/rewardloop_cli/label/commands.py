"""The commands below `rewardloop label`. Each loads its code when it is called, so that help stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardloop_cli.server_option import DEFAULT_SERVER, Server

Project = Annotated[str, typer.Option(help='Name of the project: a-z, 0-9, "-", "_" and ".".')]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")]

label = typer.Typer(help="Give tasks to people who label.", rich_markup_mode=None, no_args_is_help=True)
guidelines = typer.Typer(help="The text that labellers go by.", rich_markup_mode=None, no_args_is_help=True)
label.add_typer(guidelines, name="guidelines")


@label.command("import")
def label_import(  # noqa: PLR0913  # long: each parameter is an option of the command
    files: Annotated[
        list[str],
        typer.Argument(
            help="Prompts, or prompts with responses, in every shape that 'feedback import' reads, and Argilla records"
            " and Label Studio tasks.",
            metavar="FILE",
        ),
    ],
    project: Project,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how the files are read, with examples, and send nothing.")
    ] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="How tasks may be answered: choice, ranking, rating or edit. May be repeated. Default: rating for one"
            " response, choice for two, else ranking."
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="MINIMUM..MAXIMUM of ratings; default: 1..5.")] = "",
    overlap: Annotated[int, typer.Option(min=1, max=100, help="How many labellers answer each task.")] = 1,
    shared_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the tasks that more labellers answer.")
    ] = 0.0,
    shared_overlap: Annotated[
        int, typer.Option(min=0, max=100, help="How many labellers answer the tasks of --shared-share.")
    ] = 0,
    candidates: Annotated[
        int, typer.Option(min=1, max=8, help="How many answers the policy gives to a prompt without responses.")
    ] = 2,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=5.0, help="Temperature of these answers; default: 1.")
    ] = None,
    aspect: Annotated[
        str, typer.Option(help="Reward model that learns from rows without an aspect of their own; default: reward.")
    ] = "",
    tag: Annotated[list[str] | None, typer.Option(help="key=value for every task. May be repeated.")] = None,
    shape: Annotated[str, typer.Option("--format", help="Shape of all rows; 'feedback shapes' lists them.")] = "",
    column: Annotated[list[str] | None, typer.Option(help="KEY=PATH: where the value of a key is.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Keys that change nothing; * for all.")] = None,
    verbatim: Annotated[bool, typer.Option("--verbatim", help="Take texts as they are.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to wait while the server or Redis is away.")] = 120.0,
    side_dir: Annotated[Path | None, typer.Option(help="Folder for the progress and the rejected rows.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Ignore the progress of an earlier run.")] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Add the rows of data files as tasks. Labellers do not see what the rows say about their responses.

    Exit status: 0 if all rows are tasks, 1 if some were rejected, 2 if a file or the server failed.
    """
    from rewardloop_cli.failures import finish
    from rewardloop_cli.feedback import flags
    from rewardloop_cli.label import imports as command

    def run() -> int:
        choices = flags.parse_choices(
            named=shape,
            columns=column or [],
            ignored=ignore or [],
            one_based=None,
            ranks=None,
            scale=scale,
            verbatim=verbatim,
            count_copies=False,
        )
        wanted = command.Wanted(
            project=project,
            kinds=command.parse_kinds(kind or []),
            scale=choices.scale,
            overlap=overlap,
            shared=command.parse_shared(shared_share, shared_overlap),
            candidates=candidates,
            temperature=temperature,
            aspect=flags.parse_aspect(aspect),
            tags=flags.parse_tags(tag or []),
        )
        options = command.ImportOptions(server, wanted, choices, patience, side_dir, restart, dry_run, as_json)
        return command.run(files, options)

    finish(run)


@label.command("export")
def label_export(
    project: Project,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="trl (prompt, chosen, rejected), kto (prompt, completion, label), rankings (prompt, responses, order),"
            " answers (everything), argilla (records) or label-studio (a project's tasks).",
        ),
    ] = "trl",
    out: Annotated[
        Path | None, typer.Option(help="File to write; .parquet writes Parquet. Default: standard output.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many rows there are, with three examples, and write nothing.")
    ] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Write the answers of a project as data of other tools. Repeats are left out, except with --format answers."""
    from rewardloop_cli.failures import finish
    from rewardloop_cli.label import exports as command

    finish(lambda: command.run(server, project, form, out, replace=replace, dry_run=dry_run, as_json=as_json))


@label.command("status")
def label_status(
    project: Annotated[str, typer.Option(help="One project; default: all.")] = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show how far projects are, what each labeller has done, and how far labellers agree."""
    from rewardloop_cli.failures import finish
    from rewardloop_cli.label import status as command

    finish(lambda: command.run(server, project, as_json=as_json))


@label.command("retract")
def label_retract(
    import_ids: Annotated[list[str], typer.Argument(help="What the import printed.", metavar="IMPORT_ID")],
    project: Project,
    answers: Annotated[
        bool, typer.Option("--answers", help="Take back what was answered, too: it leaves the ledger.")
    ] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take the tasks of imports back, so that no labeller gets them any more."""
    from rewardloop_cli.failures import finish
    from rewardloop_cli.label import retract as command

    finish(lambda: command.run(server, project, import_ids, answers=answers, as_json=as_json))


@guidelines.command("set")
def guidelines_set(
    file: Annotated[Path, typer.Argument(help="Markdown file; - reads standard input.")],
    project: Project,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make a text the guidelines of a project, and print their version. An empty file takes them away."""
    from rewardloop_cli.failures import finish
    from rewardloop_cli.label import guidelines as command

    finish(lambda: command.set_text(server, project, file, as_json=as_json))


@guidelines.command("show")
def guidelines_show(
    project: Project,
    version: Annotated[str, typer.Option(help="An earlier version; default: the present one.")] = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print the guidelines of a project."""
    from rewardloop_cli.failures import finish
    from rewardloop_cli.label import guidelines as command

    finish(lambda: command.show(server, project, version, as_json=as_json))
