"""Every command with its arguments and options, from the command line's own parsers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from reference_pages.markdown import cell, code, table
from rewardloop.process.process_table import PROCESSES
from rewardloop_cli.main import app

_INTRODUCTION = """# Commands

`rewardloop COMMAND --help` shows the same. Options of the first section stand before the command's name
(`rewardloop --ca ca.pem status`); commands that are processes have settings of their own.
"""


def commands() -> str:
    """The page: options of `rewardloop` itself, processes, then every other command."""
    root = typer.main.get_command(app)
    sections = [_INTRODUCTION, f"## rewardloop\n\n{_parameters(root)}", _processes()]
    names = {process.name for process in PROCESSES}
    for path, command in _leaves(root, ("rewardloop",)):
        if " ".join(path[1:]) not in names:
            sections.append(f"## {' '.join(path)}\n\n{_help(command)}\n\n{_parameters(command)}")
    return "\n".join(sections)


def _processes() -> str:
    rows = [
        (code(f"rewardloop {p.name}"), cell(p.help), code(f"pip install 'rewardloop[{p.extra}]'")) for p in PROCESSES
    ]
    head = ("command", "what it runs", "needs")
    return f"## Processes\n\nTheir settings are listed under [Settings](settings.md).\n\n{table(head, rows)}"


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Commands without subcommands, each with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "commands", None):
            yield from _leaves(child, (*path, name))
        else:
            yield (*path, name), child


def _help(command: Any) -> str:
    return "\n\n".join(cell(paragraph) for paragraph in (command.help or "").split("\n\n"))


def _parameters(command: Any) -> str:
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        names = ", ".join(code(name) for name in (*parameter.opts, *parameter.secondary_opts))
        shown = names if is_option else code(parameter.metavar or parameter.name.upper())
        variable = parameter.envvar if isinstance(parameter.envvar, str) else ""
        default = parameter.default
        is_absent = default in (None, "", False) or callable(default) or parameter.required
        text = cell(getattr(parameter, "help", "") or "")
        rows.append((shown, code(variable), "" if is_absent else code(str(default)), text))
    return table(("option", "variable", "default", "what it does"), rows) if rows else ""
