"""The text of ``--help`` and ``--help-all`` of a process."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rewardloop.process.setting_names import ENV_PREFIX, Setting, settings_of

_FLAG_WIDTH = 34
_CONFIG = ("--config FILE", "read settings from this TOML file")


def help_text(settings_class: type[BaseModel], prog: str, show_all: bool) -> str:
    """Return the help of a process.

    Args:
        settings_class: The settings of the process. Its ``basic_settings`` are the ones that ``--help`` lists.
        prog: The command, such as ``rewardloop serve``.
        show_all: List every setting under the title of its group.
    """
    settings = settings_of(settings_class)
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    lines = [f"Usage: {prog} [--config FILE] [SETTINGS]", ""]
    lines += _paragraphs(settings_class.__doc__ or "", width)
    if show_all:
        groups = dict.fromkeys(setting.group for setting in settings)
        for number, group in enumerate(groups):
            lines += textwrap.wrap(group, width)
            lines += _row(*_CONFIG, width) if number == 0 else ()
            lines += _rows([setting for setting in settings if setting.group == group], width)
            lines.append("")
        lines += textwrap.wrap(
            f"Each setting is also an environment variable, {ENV_PREFIX}<NAME> with two underscores before a nested "
            f"name ({settings[-1].env}), and a key of the TOML file. A flag outranks the environment, which outranks "
            "the file.",
            width,
        )
    else:
        lines += ["Settings used most:", *_row(*_CONFIG, width), *_rows(_basic(settings_class, settings), width), ""]
        lines.append(f"`--help-all` shows all {len(settings)} settings.")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a setting's value as help and error messages print it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ",".join(shown(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    return str(value)


def _basic(settings_class: type[BaseModel], settings: Sequence[Setting]) -> list[Setting]:
    by_key = {setting.key: setting for setting in settings}
    return [by_key[key] for key in getattr(settings_class, "basic_settings", ())]


def _paragraphs(docstring: str, width: int) -> Iterator[str]:
    for paragraph in textwrap.dedent(docstring).strip().split("\n\n"):
        yield from textwrap.wrap(" ".join(paragraph.split()), width)
        yield ""


def _rows(settings: Sequence[Setting], width: int) -> Iterator[str]:
    for setting in settings:
        default = setting.default
        if default is PydanticUndefined:
            note = " (required)"
        elif default is None or default == "":
            note = ""
        else:
            note = f" [{shown(default)}]"
        yield from _row(setting.flags, f"{setting.field.description or ''}{note}".strip(), width)


def _row(flags: str, text: str, width: int) -> Iterator[str]:
    start = f"  {flags}"
    if len(start) > _FLAG_WIDTH - 2:
        yield start
        start = ""
    wrapped = textwrap.wrap(text, width - _FLAG_WIDTH, break_on_hyphens=False) or [""]
    yield f"{start:<{_FLAG_WIDTH}}{wrapped[0]}".rstrip()
    for line in wrapped[1:]:
        yield " " * _FLAG_WIDTH + line
