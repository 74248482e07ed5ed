"""The command line `rewardloop`: its commands and options. Other modules do the work.

Each command imports them when it runs, so that `--help` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardloop_cli.access_options import ACCESS_OPTIONS, AccessOptions
from rewardloop_cli.feedback.commands import feedback
from rewardloop_cli.label.commands import label
from rewardloop_cli.model_commands import models
from rewardloop_cli.processes import PassThrough, add_process_commands
from rewardloop_cli.server_option import DEFAULT_SERVER, Server

app = typer.Typer(
    name="rewardloop",
    help="Score, listen, learn, swap: a language model that learns from its users while it runs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
token = typer.Typer(help="Make tokens for callers.", rich_markup_mode=None, no_args_is_help=True)
config = typer.Typer(help="See the settings of the processes.", rich_markup_mode=None, no_args_is_help=True)

add_process_commands(app, models=models, feedback=feedback)
app.add_typer(config, name="config")
app.add_typer(feedback, name="feedback")
app.add_typer(label, name="label")
app.add_typer(models, name="models")
app.add_typer(token, name="token")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"rewardloop {version('rewardloop')}")
        except PackageNotFoundError:
            print("rewardloop, of an unknown version: it is not installed as a package")
        raise typer.Exit


@app.callback()
def access(
    ctx: typer.Context,
    ca: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CA", help="PEM authorities of the server; turns TLS on.")
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CLIENT_CERT", help="PEM certificate to show (mutual TLS).")
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_CLIENT_KEY", help="PEM private key of that certificate.")
    ] = None,
    server_name: Annotated[
        str, typer.Option(envvar="REWARDLOOP_SERVER_NAME", help="Name in the certificate, if it is not the address.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar="REWARDLOOP_TOKEN_FILE", help="File that holds the token to send.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="REWARDLOOP_TOKEN", help="The token. All users can see arguments: set the variable instead."
        ),
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Score, listen, learn, swap: a language model that learns from its users while it runs."""
    before = ACCESS_OPTIONS.set(AccessOptions(ca, client_cert, client_key, server_name, token_file, token))
    ctx.call_on_close(lambda: ACCESS_OPTIONS.reset(before))  # a later call in the same process starts without them


@config.command("show", cls=PassThrough, add_help_option=False)
def config_show(ctx: typer.Context) -> None:
    """Print the effective settings of a process, and where each value came from."""
    from rewardloop_cli.config_show import run

    raise typer.Exit(run(ctx.args))


@token.command("create")
def token_create(
    name: Annotated[str, typer.Option(help="The caller's name in logs and quotas.")],
    role: Annotated[list[str], typer.Option(help="score, feedback, generate, label, view or admin. May be repeated.")],
    days: Annotated[float | None, typer.Option(min=0.0, help="Days until the token expires; default: never.")] = None,
    callers: Annotated[Path | None, typer.Option(help="The server's callers file; the entry is added to it.")] = None,
) -> None:
    """Make a token for a caller and print it once. The server keeps only its hash."""
    from rewardloop_cli import tokens as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.create(name, role, days, callers))


@app.command()
def score(  # noqa: PLR0913 - each parameter is an option of the command
    responses: Annotated[list[str] | None, typer.Argument(help="Responses to --prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt that the responses answer.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="JSONL (plain or .gz) or Parquet file of {prompt, responses} or {prompt, chosen, rejected}; - reads"
            " standard input.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL file to write; default: standard output.")] = None,
    pin_version: Annotated[
        str | None, typer.Option(help="Score with exactly this version; 'models shadow VERSION' makes it warm.")
    ] = None,
    model: Annotated[str, typer.Option(help="Reward model or mixture that scores; default: reward.")] = "",
    reference: Annotated[str, typer.Option(help="The right answer, for a mixture that compares with it.")] = "",
    lane: Annotated[str, typer.Option(help="production or trainer")] = "production",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Score responses from the command line or from a file."""
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
            model=model,
            reference=reference,
            lane=lane,
            as_json=as_json,
        )
    )


# Every parameter of a command's function is one of its arguments or options: that is how typer reads them.
@app.command()
def generate(  # noqa: PLR0913  # long: each parameter is an option of the command
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; left out, or -, it is read from standard input.", metavar="[PROMPT]"),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the {role, content} messages instead, or {messages, tools}; - reads standard input."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=64, help="How many answers.")] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Most tokens of an answer; default: what the policy worker allows.")
    ] = 0,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token; default: 1.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Share of the probability; default: 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    policy_version: Annotated[str | None, typer.Option(help="Fail unless this version answers.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the answer may take.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Ask the live policy for answers to a prompt.

    The answers go to standard output, and remarks about them to standard error.
    """
    from rewardloop_cli import generate as command
    from rewardloop_cli.failures import finish

    options = command.GenerateOptions(
        server=server,
        prompt=prompt,
        messages=messages,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        policy_version=policy_version,
        timeout_s=timeout,
        as_json=as_json,
    )
    finish(lambda: command.run(options))


@app.command()
def status(
    server: Server = DEFAULT_SERVER,
    server_metrics: Annotated[
        str, typer.Option(help="Metrics page of the server, a URL or host:port.")
    ] = "http://127.0.0.1:9464/metrics",
    trainer_metrics: Annotated[
        str, typer.Option(help="Metrics page of the trainer, a URL or host:port.")
    ] = "http://127.0.0.1:9465/metrics",
) -> None:
    """Show health, active versions, traffic and training. Exit status 1 if a part is down."""
    from rewardloop_cli import status as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.run(server, server_metrics, trainer_metrics))


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(help="Such as rewardloop.v1.RewardService; default: the process.", metavar="[SERVICE]"),
    ] = "",
    metrics: Annotated[str | None, typer.Option(help="Ask this metrics page instead, such as a trainer's.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Check whether a process takes requests: exit status 0 if it does, else 1. For probes of containers."""
    from rewardloop_cli import health as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.run(server, service, metrics))


# Every parameter of a command's function is one of its arguments or options: that is how typer reads them.
@app.command()
def bench(  # noqa: PLR0913  # long: each parameter is an option of the command
    rpc: Annotated[str, typer.Option(help="score, batch (ScoreBatch) or stream (one ScoreStream)")] = "score",
    callers: Annotated[int, typer.Option(min=1, max=10_000, help="Requests in flight of a closed loop.")] = 8,
    rate: Annotated[
        str | None,
        typer.Option(help="Open loop of so many requests a second, or of a share such as 70% of the saturation."),
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="Open loops at several rates, such as 10%,30%,50%,70%,90%.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds to measure at each rate.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds before that, which are not measured.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 30.0,
    responses: Annotated[int, typer.Option(min=1, max=256, help="Responses in each group.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Words in the prompt and in each response.")] = 40,
    lengths: Annotated[
        str | None,
        typer.Option(help="Mixed lengths instead of --words: short (about 64 tokens a pair) or real (about 300)."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts of a JSONL or Parquet file, as `rewardloop score --input` reads it, instead."),
    ] = None,
    distinct: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of different groups, sent in turn; a cache answers repeats.")
    ] = 2000,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Groups in each ScoreBatch.")] = 32,
    lane: Annotated[str, typer.Option(help="production or trainer")] = "production",
    servers_for: Annotated[
        float | None,
        typer.Option(min=0.001, help="Print how many servers like this one so many requests a second need."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw; needs matplotlib.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write the figures to.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Put a server under load, and print its throughput and latency.

    By default the load is a closed loop, in which each caller waits for its answer. With --rate or --sweep it is an
    open loop: requests arrive at random without waiting, and are timed from when each was due. Ctrl-C ends the
    measurement and prints the figures so far.
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
