"""The effective settings of a process, and where the value of each came from."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from rewardloop.process.setting_names import ENV_NESTED_DELIMITER, ENV_PREFIX, Setting, settings_of
from rewardloop.process.settings import ProcessSettings, Sources, read_sources, refuse

MASK = "***"
NOT_SET = "required, not set"
_URL_START = re.compile(r"[A-Za-z][\w+.-]*://")
_SECRET_PARAMETER = re.compile(r"([?&][\w-]*(?:password|secret|token)[\w-]*=).*", re.IGNORECASE | re.DOTALL)
_SECRET_FLAG = re.compile(r"--(?:[\w.-]*[-_.])?(?:token|password|secret)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as a process would use it.

    Attributes:
        setting: The setting and its names.
        value: The value as JSON types, with secrets masked; a float that is not finite is a text. None also if it is
            required and not set.
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
    return Effective(setting, _plain(value, setting), origin, value != setting.default)


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


def _plain(value: Any, setting: Setting) -> Any:
    if value is None:
        return None
    if setting.is_secret or isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple | list):
        return [_plain(item, setting) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    is_url = _URL_START.match(text) is not None
    if setting.path[-1].endswith("_args") or ("--" in text and not is_url):
        return _flags_without_secrets(text)
    return _url_without_secrets(text)


def _flags_without_secrets(text: str) -> str:
    """Mask secrets in a string of flags, which `rewardloop up` splits as a shell does."""
    try:
        words = shlex.split(text)
    except ValueError:
        return MASK
    shown: list[str] = []
    is_secret = False  # the word is the value of the flag before it
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_value, is_secret = is_secret, False
        if is_value:
            shown.append(MASK)
        elif _SECRET_FLAG.fullmatch(flag):
            shown.append(f"{flag}{equals}{MASK}" if value else word)
            is_secret = not value
        else:
            masked = _url_without_secrets(value)
            shown.append(shlex.quote(word) if masked == value else flag + equals + masked)
    return " ".join(shown)


def _url_without_secrets(text: str) -> str:
    """Mask the password and the secret parameters of a URL, also of one that its reader would refuse.

    A password ends at the last ``@``, as for the readers of URLs; if it holds a raw ``/``, ``?`` or ``#``, or if the
    scheme is misspelt, it ends there, too. A user without a password is masked, because the user's place often holds
    the password by mistake. More than the password may be masked, never less.
    """
    start = _URL_START.match(text)
    scheme = start[0] if start else ""
    user, colon, rest = text[len(scheme) :].partition(":")
    hidden, at, host = rest.rpartition("@")
    if colon and at:
        # The last "@" may also stand in a secret parameter, of which the rest is then hidden, too.
        shown = "" if _SECRET_PARAMETER.search(hidden) else at + host
        text = f"{scheme}{user if '@' not in user else MASK}:{MASK}{shown}"
    else:
        text = scheme + _without_lone_user(scheme, text[len(scheme) :])
    return _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", text)


def _without_lone_user(scheme: str, text: str) -> str:
    """Mask the user of a URL that has no password. A path of another scheme than Redis's may hold an ``@``."""
    parameter = _SECRET_PARAMETER.search(text)
    end = parameter.start() if parameter else len(text)
    if not scheme.lower().startswith("redis"):
        end = min(end, *(at for mark in "/?#" if (at := text.find(mark)) >= 0), len(text))
    at = text.rfind("@", 0, end) if scheme else -1
    return text if at < 0 else MASK + text[at:]
