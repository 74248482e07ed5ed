"""Reads a manifest's text format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.template_layout import KIND, TemplateFormat
from rewardloop.formats.text import Format


def read_text_format(data: Mapping[str, Any]) -> Format:
    """Return the text format that ``to_json`` wrote.

    Raises:
        KeyError: If a part is missing.
        TypeError: If a part has another type.
        ValueError: If a part has no valid value, or the kind of format is not known.
    """
    kind = data.get("kind")
    if kind == KIND:
        return TemplateFormat.from_json(data)
    if kind is not None:
        raise ValueError(f"a text format of the kind {kind!r} is not known here; a newer release may know it")
    return TextFormat.from_json(data)
