"""The command `label status`: how far projects are, and what each labeller has done."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from rewardloop_cli.connect import open_client
from rewardloop_cli.feedback.summary import short_text
from rewardloop_client import Agreement, LabellingProgress


def run(server: str, project: str, *, as_json: bool) -> int:
    """Print the progress of a project, or of all. Returns 0. Raises RewardloopError."""
    with open_client(server) as client:
        projects = client.labelling.progress(project)
    if as_json:
        print(json.dumps([asdict(each) for each in projects], default=str))
        return 0
    console = Console(markup=False, highlight=False)
    if not projects:
        console.print("no project: 'rewardloop label import FILE --project NAME' makes one")
    for each in projects:
        _print(console, each)
    return 0


def _print(console: Console, progress: LabellingProgress) -> None:
    console.print(
        f"{progress.project}: {progress.done} of {progress.tasks} tasks done, {progress.open} open, "
        f"{progress.leases} with labellers, {progress.given_up} given up, {progress.answers} answers"
    )
    details = [
        ("answers", ", ".join(f"{count} {kind}" for kind, count in sorted(progress.answers_by_kind.items()))),
        ("skips", ", ".join(f"{count} {short_text(reason)}" for reason, count in sorted(progress.skips.items()))),
        ("agreement", _agreement(progress.agreement)),
        ("agreement of labellers with themselves", _agreement(progress.self_agreement)),
        ("not scored yet", str(progress.unscored) if progress.unscored else ""),
        ("guidelines", progress.guideline_version),
    ]
    for name, text in details:
        if text:
            console.print(f"  {name}: {text}")
    if not progress.labellers:
        return
    table = Table("labeller", "answers", "skips", "repeats", "seconds an answer", "agreement", "last")
    for person in progress.labellers:
        name = f"{person.labeller} ({person.caller})" if person.caller not in ("", person.labeller) else person.labeller
        given = person.answers + person.skips + person.repeats
        table.add_row(
            *(short_text(name), str(person.answers), str(person.skips), str(person.repeats)),
            f"{person.seconds / given:.1f}" if given and person.seconds else "",
            _agreement(person.agreement),
            person.last_time.strftime("%Y-%m-%d %H:%M") if person.last_time else "",
        )
    console.print(table)


def _agreement(agreement: Agreement | None) -> str:
    if agreement is None:
        return ""
    return f"{agreement.share:.0%} of {agreement.compared}"
