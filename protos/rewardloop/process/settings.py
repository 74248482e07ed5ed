"""Reads the settings of a process: flags outrank the environment, which outranks a TOML file and the defaults."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from rewardloop.process.environment import unknown_variables
from rewardloop.process.setting_names import (
    ENV_NESTED_DELIMITER,
    ENV_PREFIX,
    Setting,
    environment_names,
    nearest,
    setting_at,
    settings_of,
    unknown_keys,
)
from rewardloop.process.settings_help import help_text


class ProcessSettings(BaseSettings):
    """Base of every process's settings: frozen, unknown keys refused, environment names ``REWARDLOOP_<NAME>``."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NESTED_DELIMITER,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    # Dotted names of the settings that `--help` lists, in its order; `--help-all` lists every setting.
    basic_settings: ClassVar[tuple[str, ...]] = ()
    # Groups of `--help-all`: the name of the first field, and the title. A nested model is a group of its own.
    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)  # `read` puts flags before these, and passes the TOML file as arguments


class ServerAccess(ProcessSettings):
    """How a process that calls the services reaches them. The names are those of the command line's own options."""

    setting_groups: ClassVar[tuple[tuple[str, str], ...]] = (("ca", "Access to the services"),)

    ca: Path | None = Field(
        None, description="PEM file of the authorities that signed the server's certificate; turns TLS on"
    )
    client_cert: Path | None = Field(None, description="PEM certificate to show to the server (mutual TLS)")
    client_key: Path | None = Field(None, description="PEM private key of that certificate")
    server_name: str = Field("", description="name in the server's certificate, if it differs from the address")
    token_file: Path | None = Field(
        None, description="file that holds the token to send; it is read again when it changes"
    )
    token: SecretStr | None = Field(
        None,
        description="the token to send; all users of the machine can see arguments, so set REWARDLOOP_TOKEN instead",
    )

    def token_to_show(self) -> Path | str | None:
        """Return the token's file if there is one, else the token itself, as the client library takes it."""
        return self.token_file or (self.token.get_secret_value() if self.token is not None else None)


S = TypeVar("S", bound=ProcessSettings)


class InvalidSettings(SystemExit):
    """Ends the process with status 2 after one line for each wrong setting."""


@dataclass(frozen=True, slots=True)
class Sources(Generic[S]):
    """The values that each source gives for a settings class, before validation, as mappings by field name."""

    settings_class: type[S]
    prog: str
    flags: CliSettingsSource[Any]
    environment: Mapping[str, Any]
    file: Mapping[str, Any]
    file_path: Path | None

    def settings(self) -> S:
        """Validate and return the settings. Raises pydantic's ValidationError."""
        return self.settings_class(_cli_settings_source=self.flags, **self.file)  # type: ignore[call-arg]  # BaseSettings takes it


def parse(settings_class: type[S], argv: Sequence[str], prog: str) -> S:
    """Read the settings of one process.

    Args:
        settings_class: The class to read.
        argv: The flags. ``--config FILE`` names a TOML file; ``--help`` and ``--help-all`` print help.
        prog: The command's name in help and messages.

    Raises:
        SystemExit: Help was asked for (status 0) or a flag is wrong (status 2).
        InvalidSettings: A setting is wrong; the messages are on standard error.
    """
    sources = read_sources(settings_class, argv, prog)
    for message in unknown_variables(settings_class, os.environ):
        print(f"{prog}: {message}", file=sys.stderr)
    try:
        return sources.settings()
    except ValidationError as error:
        refuse(sources, error)
    except SettingsError as error:  # such as a list with nan in it, which the command line passes on as JSON
        print(f"{prog}: {error}: a list there cannot be read, or holds a number that is not finite", file=sys.stderr)
        raise InvalidSettings(2) from error


def read_sources(settings_class: type[S], argv: Sequence[str], prog: str) -> Sources[S]:
    """Read flags, environment and TOML file, without validating values. Arguments and exceptions as of `parse`."""
    arguments = list(argv)
    if any(flag in arguments for flag in ("-h", "--help", "--help-all")):
        print(help_text(settings_class, prog, show_all="--help-all" in arguments))
        raise SystemExit(0)
    parser = _Parser(settings_class, prog)
    parser.add_argument("--config", type=Path)
    config: Path | None = None
    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            settings_class, root_parser=parser, cli_prog_name=prog, cli_parse_args=arguments
        )
        config = parser.parse_args(arguments).config
        from_file = {} if config is None else tomllib.loads(config.read_text(encoding="utf-8"))
        environment = EnvSettingsSource(settings_class)()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        print(f"{prog}: {config}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        raise InvalidSettings(2) from error
    except SettingsError as error:
        print(f"{prog}: {_not_json(settings_class) or error}", file=sys.stderr)
        raise InvalidSettings(2) from error
    settings = settings_of(settings_class)
    if unknown := list(unknown_keys(settings, from_file)):
        for key in unknown:
            print(f"{prog}: {_unknown_line(settings, key)}", file=sys.stderr)
        known = Sources(settings_class, prog, flags, environment, _without(from_file, unknown), config)
        try:
            known.settings()
        except ValidationError as error:
            refuse(known, error)  # the wrong values of the other keys are named too
        raise InvalidSettings(2)
    return Sources(settings_class, prog, flags, environment, from_file, config)


def refuse(sources: Sources[S], error: ValidationError) -> NoReturn:
    """Print one line for each wrong setting with its names, and raise InvalidSettings."""
    settings = settings_of(sources.settings_class)
    for problem in error.errors():
        print(f"{sources.prog}: {_problem_line(sources, settings, problem)}", file=sys.stderr)
    raise InvalidSettings(2) from error


def _without(file: Mapping[str, Any], keys: Sequence[str], above: str = "") -> dict[str, Any]:
    """A copy of a TOML file's contents that lacks the entries with these dotted keys."""
    return {
        name: _without(value, keys, f"{above}{name}.") if isinstance(value, Mapping) else value
        for name, value in file.items()
        if f"{above}{name}" not in keys
    }


def _problem_line(sources: Sources[S], settings: Sequence[Setting], problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_line(settings, name)
    reason = str(problem["msg"]).removeprefix("Value error, ")
    setting = setting_at(settings, problem["loc"])
    if setting is None:
        return f"{name}: {reason}" if name else reason
    return f"{name}: {reason} ({setting.names})"


def _unknown_line(settings: Sequence[Setting], name: str) -> str:
    tables = {".".join(setting.path[:end]): None for setting in settings for end in range(1, len(setting.path))}
    guess = nearest(name, [*(setting.key for setting in settings), *tables])
    hint = f"; did you mean {guess}?" if guess else ""
    return f"{name}: unknown setting{hint}"


def _not_json(settings_class: type[ProcessSettings]) -> str:
    """Return what to say about the variable of a list or of a whole group whose value is not JSON, or an empty text."""
    plain = {setting.env for setting in settings_of(settings_class) if not setting.kind.endswith("...")}
    for name in sorted(environment_names(settings_class) - plain):
        value = {each.upper(): text for each, text in os.environ.items()}.get(name)
        try:
            json.loads(value or "null")
        except ValueError:
            return f"the environment variable {name} must hold JSON, such as [1.0] for a list or {{}} for a group"
    return ""


_FLAG = re.compile(r"--[\w.-]+")


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag for one that does not exist, and prints one line instead of a usage of a hundred flags."""

    def __init__(self, settings_class: type[ProcessSettings], prog: str) -> None:
        super().__init__(prog=prog, allow_abbrev=False, add_help=False, usage=f"{prog} [--config FILE] [SETTINGS]")
        self._settings_class = settings_class

    def parse_known_args(  # type: ignore[override]  # argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found, unknown

    def _unknown(self, words: Sequence[str]) -> str:
        """Name the first unknown flag. Other words are not quoted, because a secret may be among them."""
        flag = next((match[0] for match in map(_FLAG.match, words) if match), None)
        if flag is None:
            return "an argument stands beside the flags; every setting is given as --NAME VALUE"
        known = [flag for setting in settings_of(self._settings_class) for flag in setting.flags.split()]
        guess = nearest(flag, [flag for flag in known if flag.startswith("--")])
        hint = f"did you mean {guess}?" if guess else "--help-all lists every flag"
        return f"unknown flag {flag}; {hint}"

    def error(self, message: str) -> NoReturn:
        # argparse quotes a value that was given to a flag without one; it may be a secret.
        named, quotes, _ = message.partition(" ignored explicit argument ")
        message = f"{named} takes no value" if quotes else message
        self.exit(2, f"{self.prog}: {message}\n")
