"""The effective settings of a process, and where the value of each came from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from rewardloop.process.setting_names import ENV_NESTED_DELIMITER, ENV_PREFIX, Setting, settings_of
from rewardloop.process.settings import ProcessSettings, Sources, read_sources, refuse

MASK = "***"
NOT_SET = "required, not set"
# The userinfo and the parameters of a URL, and flags inside a string of flags, may hold a password or a token.
_SECRETS = (
    re.compile(r"(://[^/@\s]*?:)[^/@\s]+(?=@)"),
    re.compile(r"([?&][\w-]*(?:password|secret|token)[\w-]*=)[^&\s]+", re.IGNORECASE),
    re.compile(r"(--(?:[\w.-]*-)?(?:token|password)[= ])\S+"),
)


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as a process would use it.

    Attributes:
        setting: The setting and its names.
        value: The value as JSON types, with secrets masked; None also if it is required and not set.
        origin: ``flag --NAME``, ``environment NAME``, ``file PATH``, ``default``, or `NOT_SET`.
        is_changed: Whether the value differs from the default.
    """

    setting: Setting
    value: Any
    origin: str
    is_changed: bool


def effective_settings(settings_class: type[ProcessSettings], argv: Sequence[str], prog: str) -> list[Effective]:
    """Read the settings as the process would, and say where each value came from.

    A required setting that is not set is no error here.

    Raises:
        SystemExit: As `rewardloop.process.settings.parse` does.
    """
    sources = read_sources(settings_class, argv, prog)
    valid: ProcessSettings | None = None
    try:
        valid = sources.settings()
    except ValidationError as error:
        if any(problem["type"] != "missing" for problem in error.errors()):
            refuse(sources, error)
    return [_effective(sources, valid, setting) for setting in settings_of(settings_class)]


def _effective(sources: Sources[Any], valid: BaseModel | None, setting: Setting) -> Effective:
    origin, raw = _origin(sources, setting)
    if valid is not None:
        value: Any = valid
        for name in setting.path:
            value = getattr(value, name)
    elif raw is not PydanticUndefined:
        value = raw
    else:
        value = setting.default
    if value is PydanticUndefined:
        return Effective(setting, None, NOT_SET, False)
    return Effective(setting, _plain(value, setting.is_secret), origin, value != setting.default)


def _origin(sources: Sources[Any], setting: Setting) -> tuple[str, Any]:
    """Return where the value comes from and the value before validation, or `PydanticUndefined` for the default."""
    for given, name in (
        (sources.flags(), f"flag {setting.flag}"),
        (sources.environment, f"environment {_variable(setting)}"),
        (sources.file, f"file {sources.file_path}"),
    ):
        value = _at(given, setting.path)
        if value is not PydanticUndefined:
            return name, value
    return "default", PydanticUndefined


def _at(given: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = given
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return PydanticUndefined
        value = value[name]
    return value


def _variable(setting: Setting) -> str:
    """Return the variable that gives the setting: its own, or the one that holds its whole group as JSON."""
    present = {name.upper() for name in os.environ}
    for end in range(len(setting.path), 0, -1):
        name = ENV_PREFIX + ENV_NESTED_DELIMITER.join(setting.path[:end]).upper()
        if name in present:
            return name
    return setting.env


def _plain(value: Any, is_secret: bool) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if is_secret or isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple | list):
        return [_plain(item, is_secret) for item in value]
    text = str(value)
    for secret in _SECRETS:
        text = secret.sub(rf"\g<1>{MASK}", text)
    return text
