"""The part of the Lua scripts of labelling that server and trainer share."""

from __future__ import annotations

from importlib.resources import files

PLACES = files(__package__).joinpath("places.lua").read_text("utf-8")
