"""The content of a message, as the ecosystem's files and calls write it."""

from __future__ import annotations

from collections.abc import Mapping


def content_text(content: object) -> str:
    """Return the text of a message's content: the text itself, or a list's parts ``{"type": "text", "text"}`` joined.

    Raises:
        ValueError: If it is neither, for example an image. The message says what it is.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"is {type(content).__name__}, not text or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ValueError(f"part {i} is no text part: models read text only")
        texts.append(text)
    return "".join(texts)
