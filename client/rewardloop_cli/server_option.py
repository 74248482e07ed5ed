"""The option that names the server. It imports no gRPC, so that `--help` of a command stays fast."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_SERVER = "127.0.0.1:50051"
Server = Annotated[
    str, typer.Option("--server", envvar="REWARDLOOP_SERVER", help="Address of the server; several with commas.")
]
