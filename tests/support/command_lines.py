"""Command lines of documents, and whether what they call would take them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

from rewardloop_cli.main import app
from rewardloop_cli.processes import PROCESSES
from support.documents import blocks

PROGRAMS = ("rewardloop", "pytest", "python", "make", "torchrun")
# Last words with which a command prints something and starts nothing.
_INFORMING = {"--help", "--help-all", "--version"}
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


class Parsed(Exception):
    """The arguments were read without an error; nothing was started."""


def command_lines(page: Path) -> Iterator[Sequence[str]]:
    """The words of every command line of a page: prompts of consoles, lines of plain blocks, and spans of code.

    A span of rewardloop's without options mentions a command and is no whole command line.
    """
    lines = [line for block in blocks(page) for line in _lines(block.language, block.code)]
    spans = _SPAN.findall(_FENCED.sub("", page.read_text(encoding="utf-8")))
    lines += [span for span in spans if not span.startswith("rewardloop") or " --" in span]
    for line in lines:
        if line.split(" ")[0] in PROGRAMS and " " in line:
            yield shlex.split(line, comments=True)


def _lines(language: str, code: str) -> Iterator[str]:
    whole = code.replace("\\\n", " ")
    if language == "console":
        yield from (line.removeprefix("$ ") for line in whole.splitlines() if line.startswith("$ "))
    elif language in ("", "bash", "sh"):
        yield from whole.splitlines()


def check(words: Sequence[str]) -> None:
    """Let rewardloop's own parsers read the arguments. Raises SystemExit or the parser's error where they refuse."""
    command: Any = typer.main.get_command(app)
    if words[-1] in _INFORMING:
        with pytest.raises(SystemExit) as ended:
            command(list(words[1:]))
        assert ended.value.code == 0
        return
    context, taken = command.make_context("rewardloop", list(words[1:])), ""
    while hasattr(command, "commands"):
        name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        taken = f"{taken} {name}".strip()
        process = next((p for p in PROCESSES if p.name == taken), None)
        if process is not None:
            check_process(process.module, rest)
            return
        command, context = child, child.make_context(name, list(rest), parent=context)


def check_process(module: str, arguments: Sequence[str]) -> None:
    """Let a process read its arguments, and stop it before it does anything with them."""
    process = importlib.import_module(module)
    if "--config" in arguments:
        Path(arguments[arguments.index("--config") + 1]).touch()
    place: Any = process if hasattr(process, "parse") else argparse.ArgumentParser
    name = "parse" if place is process else "parse_args"
    read = getattr(place, name)

    def read_and_stop(*args: Any, **kwargs: Any) -> NoReturn:
        read(*args, **kwargs)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, read_and_stop)
        with pytest.raises(Parsed):
            process.main(list(arguments))
