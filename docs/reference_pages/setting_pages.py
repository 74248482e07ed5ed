"""Every setting of every process, from the settings classes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from reference_pages.markdown import cell, code, table

# Command -> module and class of its settings. `rewardloop export` has flags alone: see the commands.
PROCESSES: Sequence[tuple[str, str, str]] = (
    ("up", "rewardloop_local.up", "UpSettings"),
    ("down", "rewardloop_local.down", "DownSettings"),
    ("demo", "rewardloop_demo.settings", "DemoSettings"),
    ("serve", "rewardloop_server.settings", "ServeSettings"),
    ("train", "rewardloop_trainer.settings", "TrainSettings"),
    ("policy-worker", "rewardloop_policy.settings", "PolicyWorkerSettings"),
    ("sft", "rewardloop_trainer.policy.sft_settings", "SftRunSettings"),
    ("policy-train", "rewardloop_trainer.commands.policy_train_settings", "PolicyTrainSettings"),
)

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


@dataclass(frozen=True, slots=True)
class Setting:
    """``path``: names of the nested models and of the field. ``default``: as shown; empty when one must be given."""

    path: tuple[str, ...]
    kind: str
    default: str
    description: str

    @property
    def flag(self) -> str:
        return "--" + ".".join(name.replace("_", "-") for name in self.path)

    @property
    def variable(self) -> str:
        return "REWARDLOOP_" + "__".join(self.path).upper()


def settings_of(model: type[BaseModel], default: object = PydanticUndefined) -> Iterator[Setting]:
    """Every setting of a model and of the models nested in it, in the order of their definition.

    Args:
        model: a settings class.
        default: an instance whose values are the defaults, as nested models have; undefined for the class's own.
    """
    for name, field in model.model_fields.items():
        value = _default(field) if default is PydanticUndefined else getattr(default, name)
        nested = _nested(field)
        if nested is None:
            yield Setting((name,), _kind(field.annotation), _shown(value), field.description or "")
            continue
        for setting in settings_of(nested, value):
            yield Setting((name, *setting.path), setting.kind, setting.default, setting.description)


def settings() -> str:
    """The page: one section a command."""
    sections = [_INTRODUCTION]
    for command, module, name in PROCESSES:
        model = getattr(importlib.import_module(module), name)
        rows = [
            (code(s.flag), code(s.variable), s.kind, code(s.default) or "none", cell(s.description))
            for s in settings_of(model)
        ]
        text = cell((model.__doc__ or "").strip())
        head = ("flag", "variable", "value", "default", "what it does")
        sections.append(f"## rewardloop {command}\n\n{text}\n\n{table(head, rows)}")
    return "\n".join(sections)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> object:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _kind(annotation: Any) -> str:
    """The values that a setting takes, in words: alternatives, or the type's name."""
    if get_origin(annotation) is Literal:
        return ", ".join(code(str(value)) for value in get_args(annotation))
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) in (tuple, list):
        return "list"
    if inner and get_origin(annotation) is not None:
        return _kind(inner[0])
    words = {"bool": "switch", "int": "integer", "float": "number", "str": "text", "Path": "path", "SecretStr": "text"}
    name = getattr(annotation, "__name__", str(annotation))
    return words.get(name, "text")


def _shown(value: object) -> str:
    if value is None or value is PydanticUndefined or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
