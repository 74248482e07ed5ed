"""How a process reads its settings: flags over environment over a TOML file over defaults."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


class ProcessSettings(BaseSettings):
    """Base of every process's settings: frozen, unknown keys refused, environment names ``REWARDLOOP_<NAME>``."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="REWARDLOOP_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)  # `parse` puts flags before these; the TOML file is what it inits with


class ServerAccess(ProcessSettings):
    """How a process that calls the services reaches them; names as those of the command line's own options."""

    ca: Path | None = Field(None, description="PEM authorities of the server's certificate; TLS to it then")
    client_cert: Path | None = Field(None, description="PEM certificate to show to the server (mutual TLS)")
    client_key: Path | None = Field(None, description="PEM private key of that certificate")
    server_name: str = Field("", description="name in the server's certificate, where its address is another")
    token_file: Path | None = Field(None, description="file with the token to show; read again when it changes")
    token: SecretStr | None = Field(
        None, description="the token itself; arguments are seen by all users: set the variable REWARDLOOP_TOKEN"
    )

    def token_to_show(self) -> Path | str | None:
        """As the client library takes it; the file goes first."""
        return self.token_file or (self.token.get_secret_value() if self.token is not None else None)


S = TypeVar("S", bound=ProcessSettings)


class InvalidSettings(SystemExit):
    """Ends the process with status 2 after one line for each wrong setting."""


def parse(settings_class: type[S], argv: Sequence[str], prog: str) -> S:
    """Read the settings of one process; ``--config FILE`` names its TOML file.

    Prints help or what is wrong, and raises SystemExit, as argparse does.
    """
    parser = argparse.ArgumentParser(prog=prog, description=settings_class.__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with any of the settings below")
    flags: CliSettingsSource[Any] = CliSettingsSource(
        settings_class, root_parser=parser, cli_prog_name=prog, cli_parse_args=list(argv)
    )
    config = parser.parse_args(list(argv)).config
    try:
        from_file = {} if config is None else tomllib.loads(config.read_text())
        return settings_class(_cli_settings_source=flags, **from_file)  # type: ignore[call-arg]  # BaseSettings takes it
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        print(f"{prog}: {config}: {error}", file=sys.stderr)
        raise InvalidSettings(2) from error
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            reason = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"]
            print(f"{prog}: {name}: {reason}", file=sys.stderr)
        raise InvalidSettings(2) from error
