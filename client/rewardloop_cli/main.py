"""The command line `rewardloop`: every command and option, none of the work.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardloop_cli.access_options import ACCESS_OPTIONS, AccessOptions
from rewardloop_cli.processes import PassThrough, add_process_commands

_Server = Annotated[
    str, typer.Option("--server", envvar="REWARDLOOP_SERVER", help="Address of the server; several with commas.")
]
_Model = Annotated[str, typer.Argument(help="reward or policy", metavar="MODEL")]
_Reason = Annotated[str, typer.Option(help="Kept with the change: who asks, and why.")]
_DEFAULT_SERVER = "127.0.0.1:50051"

app = typer.Typer(
    name="rewardloop",
    help="Score, listen, learn, swap: a language model that learns from its users while it runs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
feedback = typer.Typer(help="Bring preference data in.", rich_markup_mode=None, no_args_is_help=True)
token = typer.Typer(help="Let callers in.", rich_markup_mode=None, no_args_is_help=True)
models = typer.Typer(help="See and move model versions.", rich_markup_mode=None, no_args_is_help=True)
config = typer.Typer(help="See the settings of the processes.", rich_markup_mode=None, no_args_is_help=True)

add_process_commands(app)
app.add_typer(config, name="config")
app.add_typer(feedback, name="feedback")
app.add_typer(models, name="models")
app.add_typer(token, name="token")


@app.callback()
def access(
    ca: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CA", help="PEM authorities of the server's certificate: TLS.")
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CLIENT_CERT", help="PEM certificate to show (mutual TLS).")
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CLIENT_KEY", help="PEM private key of that certificate.")
    ] = None,
    server_name: Annotated[
        str, typer.Option(envvar="REWARDLOOP_SERVER_NAME", help="Name in the certificate, if not the address.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_TOKEN_FILE", help="File with the token to show.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="REWARDLOOP_TOKEN", help="The token; arguments are seen by all users: use the variable."),
    ] = "",
) -> None:
    """Score, listen, learn, swap: a language model that learns from its users while it runs."""
    ACCESS_OPTIONS.set(AccessOptions(ca, client_cert, client_key, server_name, token_file, token))


@config.command("show", cls=PassThrough, add_help_option=False)
def config_show(ctx: typer.Context) -> None:
    """Print the effective settings of a process, and where each value came from."""
    from rewardloop_cli.config_show import run

    raise typer.Exit(run(ctx.args))


@token.command("create")
def token_create(
    name: Annotated[str, typer.Option(help="The caller's name, in logs and quotas.")],
    role: Annotated[list[str], typer.Option(help="score, feedback, generate or admin; may be repeated.")],
    days: Annotated[float | None, typer.Option(min=0.0, help="Days until it expires; default: never.")] = None,
    callers: Annotated[Path | None, typer.Option(help="The server's callers file, to add the entry to.")] = None,
) -> None:
    """Make a caller's token and print it once; the server keeps only its hash."""
    from rewardloop_cli import tokens as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.create(name, role, days, callers))


@app.command()
def score(
    responses: Annotated[list[str] | None, typer.Argument(help="Responses to --prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of the responses.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="JSONL (plain or .gz) or Parquet: {prompt, responses} or {prompt, chosen, rejected}; - is stdin.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL to write; default: standard output.")] = None,
    pin_version: Annotated[str | None, typer.Option(help="Score by exactly this version.")] = None,
    lane: Annotated[str, typer.Option(help="production or trainer")] = "production",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line instead of a table.")] = False,
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Score responses, from the command line or from JSONL."""
    from rewardloop_cli import score as command
    from rewardloop_cli.failures import finish

    finish(
        lambda: command.run(
            server=server,
            prompt=prompt,
            responses=responses or [],
            input_file=input_file,
            output=output,
            pin_version=pin_version,
            lane=lane,
            as_json=as_json,
        )
    )


@feedback.command("import")
def feedback_import(
    files: Annotated[list[Path], typer.Argument(help="JSONL (plain or .gz) or Parquet.", metavar="FILE")],
    source: Annotated[str, typer.Option(help="Who judged: human, llm_judge or implicit.")] = "human",
    tag: Annotated[list[str] | None, typer.Option(help="key=value put on every signal; may be repeated.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait while the server or Redis is away.")] = 120.0,
    side_dir: Annotated[Path | None, typer.Option(help="Where progress and rejected rows are kept.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Ignore what an earlier run got done.")] = False,
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Record the signals of data files.

    Rows: {prompt, chosen, rejected} (text or messages), {prompt, responses, ranking}, {prompt, responses, chosen},
    {prompt, responses, annotations}, {prompt, completion, label}, {prompt, response, up, down}.
    Exit status: 0 all good, 1 some rows were rejected, 2 nothing more could be done.
    """
    from rewardloop_cli import feedback_import as command
    from rewardloop_cli.failures import finish
    from rewardloop_data.rows import Labels

    finish(
        lambda: command.run(
            files,
            server=server,
            labels=Labels(command.parse_source(source), command.parse_tags(tag or [])),
            patience_s=patience,
            side_dir=side_dir,
            restart=restart,
        )
    )


@models.command("list")
def models_list(
    model: Annotated[str, typer.Argument(help="reward or policy; default: both", metavar="[MODEL]")] = "",
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Versions in the store, newest first."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.list_versions(server, [model] if model else ["reward", "policy"]))


@models.command("show")
def models_show(
    model: _Model,
    version: Annotated[str, typer.Argument(help="Default: the active one.", metavar="[VERSION]")] = "",
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """One version with its manifest."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.show(server, model, version))


@models.command("promote")
def models_promote(
    model: _Model,
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    reason: _Reason = "by hand",
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Make a version active; returns once the server serves it."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.promote(server, model, version, reason))


@models.command("rollback")
def models_rollback(model: _Model, reason: _Reason = "by hand", server: _Server = _DEFAULT_SERVER) -> None:
    """Go back to the version that was active before."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.rollback(server, model, reason))


@models.command("canary")
def models_canary(
    version: Annotated[str, typer.Argument(help="Left out with --end.", metavar="[VERSION]")] = "",
    share: Annotated[float, typer.Option(help="Of the requests, above 0 and below 1.")] = 0.05,
    end: Annotated[bool, typer.Option("--end", help="End the canary.")] = False,
    model: Annotated[str, typer.Option(help="reward or policy.")] = "reward",
    reason: _Reason = "by hand",
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Give a version a share of the requests beside the active one; any promotion ends it."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.canary(server, model, command.holder(version, end), share, reason))


@models.command("shadow")
def models_shadow(
    version: Annotated[str, typer.Argument(help="Left out with --end.", metavar="[VERSION]")] = "",
    share: Annotated[float, typer.Option(help="Of the requests, above 0, at most 1.")] = 1.0,
    end: Annotated[bool, typer.Option("--end", help="End the shadow.")] = False,
    reason: _Reason = "by hand",
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Score a share of the requests with a version too, to compare in the server's metrics; any promotion ends it."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.shadow(server, command.holder(version, end), share, reason))


@app.command()
def status(
    server: _Server = _DEFAULT_SERVER,
    server_metrics: Annotated[str, typer.Option(help="Metrics page of the server.")] = "http://127.0.0.1:9464/metrics",
    trainer_metrics: Annotated[
        str, typer.Option(help="Metrics page of the trainer.")
    ] = "http://127.0.0.1:9465/metrics",
) -> None:
    """What is going on: health, active versions, traffic, training. Exit status 1 when a part is down."""
    from rewardloop_cli import status as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.run(server, server_metrics, trainer_metrics))


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(help="Such as rewardloop.v1.RewardService; default: the whole process.", metavar="[SERVICE]"),
    ] = "",
    metrics: Annotated[str | None, typer.Option(help="Ask this metrics page instead, as of a trainer.")] = None,
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Whether a process takes requests: exit status 0, else 1. For the probes of containers."""
    from rewardloop_cli import health as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.run(server, service, metrics))


# Every parameter of a command's function is one of its arguments or options: that is how typer reads them.
@app.command()
def bench(
    rpc: Annotated[str, typer.Option(help="score, batch (ScoreBatch) or stream (one ScoreStream)")] = "score",
    callers: Annotated[int, typer.Option(min=1, max=10_000, help="Closed loop: requests in flight.")] = 8,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: requests a second, or 70% of a saturation measured first.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="Several rates, such as 10%,30%,50%,70%,90%.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, each rate.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds before that, not measured.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 30.0,
    responses: Annotated[int, typer.Option(min=1, max=256, help="Responses of one group.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Words of the prompt and of each response.")] = 40,
    lengths: Annotated[
        str | None, typer.Option(help="Instead of --words: short (about 64 tokens a pair) or real (about 300).")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Instead: JSONL or Parquet, as `rewardloop score --input` reads it.")
    ] = None,
    distinct: Annotated[
        int, typer.Option(min=1, max=100_000, help="Different groups, asked in turn: a cache sees repeats.")
    ] = 2000,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Groups of one ScoreBatch.")] = 32,
    lane: Annotated[str, typer.Option(help="production or trainer")] = "production",
    servers_for: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second: how many servers like this one they take.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw; needs matplotlib.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the same figures as JSON.")] = None,
    server: _Server = _DEFAULT_SERVER,
) -> None:
    """Put a server under load and print its throughput and latency.

    Without --rate or --sweep a closed loop: each caller waits for its answer. With them Poisson arrivals that do not
    wait, timed from when each was due. Ctrl-C prints what there is.
    """
    from rewardloop_cli.bench import command
    from rewardloop_cli.failures import finish

    options = command.BenchOptions(
        server=server,
        rpc=rpc,
        callers=callers,
        rate=rate,
        sweep=sweep,
        seconds=seconds,
        warm_up_s=warm_up,
        timeout_s=timeout,
        responses=responses,
        words=words,
        lengths=lengths,
        texts=texts,
        distinct=distinct,
        batch=batch,
        lane=lane,
        plot=plot,
        json_file=json_file,
        servers_for=servers_for,
    )
    finish(lambda: command.run(options))


if __name__ == "__main__":
    app()
