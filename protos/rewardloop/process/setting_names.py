"""The settings of a process as a flat list: each one's flag, environment variable, TOML key and group."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

ENV_PREFIX = "REWARDLOOP_"
ENV_NESTED_DELIMITER = "__"
_FIRST_GROUP = "Settings"
_LEAST_ALIKE = 0.6
_KINDS: dict[Any, str] = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH", SecretStr: "SECRET"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a process, with the names that a flag, the environment and a TOML file have for it.

    Attributes:
        path: Names of the nested models that hold the field, then the field's name.
        field: The field as pydantic knows it: annotation, default and description.
        group: Title under which ``--help-all`` lists it.
        is_basic: Whether ``--help`` lists it.
    """

    path: tuple[str, ...]
    field: FieldInfo
    group: str
    is_basic: bool

    @property
    def key(self) -> str:
        """The dotted TOML key."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def flags(self) -> str:
        """The flag with its value, as help shows it: ``--once / --no-once`` or ``--seed INT``."""
        if self.field.annotation is bool or self._optional_of is bool:
            return f"{self.flag} / --no-{self.flag[2:]}"
        return f"{self.flag} {self.kind}"

    @property
    def env(self) -> str:
        """The environment variable; a double underscore stands before each nested name."""
        return ENV_PREFIX + ENV_NESTED_DELIMITER.join(self.path).upper()

    @property
    def kind(self) -> str:
        """The form of a value: ``INT``, ``PATH``, ``{cpu,cuda}``."""
        annotation = self._optional_of or self.field.annotation
        origin = get_origin(annotation)
        if origin is Literal:
            return "{" + ",".join(str(value) for value in get_args(annotation)) + "}"
        if origin in (tuple, list):
            item = get_args(annotation)[0]
            item = get_args(item)[0] if get_origin(item) is Annotated else item
            return f"{_KINDS.get(item, 'TEXT')},..."
        return _KINDS.get(annotation, "TEXT")

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)

    @property
    def is_secret(self) -> bool:
        return SecretStr in (self.field.annotation, self._optional_of)

    @property
    def names(self) -> str:
        """The three names of the setting, for an error message."""
        return f"flag {self.flag}, environment variable {self.env}, TOML key {self.key}"

    @property
    def _optional_of(self) -> Any:
        """``T`` when the annotation is ``T | None``, else None."""
        annotation = self.field.annotation
        if get_origin(annotation) not in (Union, types.UnionType):
            return None
        rest = [each for each in get_args(annotation) if each is not type(None)]
        return rest[0] if len(rest) == 1 else None


def settings_of(settings_class: type[BaseModel]) -> list[Setting]:
    """Return every setting of the class in the order of its fields; the fields of nested models come last."""
    basic = frozenset(getattr(settings_class, "basic_settings", ()))
    return list(_walk(settings_class, (), _FIRST_GROUP, basic))


def environment_names(settings_class: type[BaseModel]) -> set[str]:
    """Return the environment variables that the class reads: one for each setting, and one (JSON) for each group."""
    found = {setting.env for setting in settings_of(settings_class)}
    for setting in settings_of(settings_class):
        for end in range(1, len(setting.path)):
            found.add(ENV_PREFIX + ENV_NESTED_DELIMITER.join(setting.path[:end]).upper())
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None when none is.

    A name that differs only in its separators (``-``, ``_`` and ``.``) always finds its counterpart.
    """
    names = list(known)
    plain = _plain(name)
    for each in names:
        if _plain(each) == plain:
            return each
    last = _last(name)
    for each in difflib.get_close_matches(name, names, n=3, cutoff=0.75):
        # Long names of one group resemble each other by their common beginning alone.
        if difflib.SequenceMatcher(None, last, _last(each)).ratio() >= _LEAST_ALIKE:
            return each
    return None


def setting_at(settings: Sequence[Setting], location: Sequence[object]) -> Setting | None:
    """Return the setting at pydantic's error location, which may go on into the setting's value."""
    by_path = {setting.path: setting for setting in settings}
    for end in range(len(location), 0, -1):
        found = by_path.get(tuple(str(part) for part in location[:end]))
        if found is not None:
            return found
    return None


def unknown_keys(settings: Sequence[Setting], file: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted key of each entry of a TOML file that is, letter for letter, neither a setting nor a table."""
    paths = {setting.path for setting in settings}
    tables = {path[:end] for path in paths for end in range(1, len(path))}
    for name, value in file.items():
        path = (*above, name)
        if path in tables:
            if isinstance(value, Mapping):
                yield from unknown_keys(settings, value, path)
        elif path not in paths:
            yield ".".join(path)


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").replace(".", "_").lower()


def _titles(model: type[BaseModel]) -> dict[str, str]:
    """Return the group titles that the class and its bases declare, by the name of each group's first field."""
    titles: dict[str, str] = {}
    for each in reversed(model.__mro__):
        titles |= dict(vars(each).get("setting_groups", ()))
    return titles


def _walk(model: type[BaseModel], above: tuple[str, ...], group: str, basic: frozenset[str]) -> Iterator[Setting]:
    titles = {} if above else _titles(model)
    nested: list[tuple[tuple[str, ...], type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        path = (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested.append((path, field.annotation))
            continue
        group = titles.get(name, group)
        yield Setting(path, field, group, ".".join(path) in basic)
    for path, inner in nested:
        about, _, _ = " ".join((inner.__doc__ or "").split()).partition(". ")
        yield from _walk(inner, path, f"{'.'.join(path)}: {about}" if about else ".".join(path), basic)
