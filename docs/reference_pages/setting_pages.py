"""Every setting of every process, from the settings classes."""

from __future__ import annotations

from typing import Any, get_args

from pydantic_core import PydanticUndefined

from reference_pages.markdown import cell, code, table
from rewardloop.process.process_table import PROCESSES
from rewardloop.process.setting_names import Setting, settings_of

_INTRODUCTION = """# Settings

A setting is read from the command's flag, else from its environment variable, else from the TOML file that
`--config FILE` names, else it has its default. An unknown key is an error. In a TOML file a setting has the name of its
flag with underscores, and the part before a dot is a table: `--policy.live-test.share 0.2` is

```toml
[policy.live_test]
share = 0.2
```

A switch such as `--spin` has an opposite, `--no-spin`.
"""


def settings() -> str:
    """The page: a section for each command, a table for each group of its settings."""
    sections = [_INTRODUCTION]
    for process in PROCESSES:
        settings_class = process.settings_class()
        sections.append(f"## rewardloop {process.name}\n\n{cell((settings_class.__doc__ or '').strip())}")
        groups: dict[str, list[Setting]] = {}
        for setting in settings_of(settings_class):
            groups.setdefault(setting.group, []).append(setting)
        for title, found in groups.items():
            head = ("flag", "variable", "value", "default", "what it does")
            sections.append(f"**{title}**\n\n{table(head, [_row(setting) for setting in found])}")
    return "\n\n".join(sections)


def _row(setting: Setting) -> tuple[str, str, str, str, str]:
    default = "" if setting.field.is_required() else _shown(setting.default)
    about = cell(setting.field.description or "")
    return code(setting.flag), code(setting.env), _values(setting), code(default) or "none", about


def _values(setting: Setting) -> str:
    """The values that a setting takes, in words: alternatives, or the kind of value."""
    if setting.kind.startswith("{"):
        return ", ".join(code(value) for value in setting.kind[1:-1].split(","))
    if bool in (setting.field.annotation, *get_args(setting.field.annotation)):
        return "switch"
    return setting.kind.lower()


def _shown(value: Any) -> str:
    if value is None or value is PydanticUndefined or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
