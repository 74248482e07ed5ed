"""Reads files that hold a key, a token or a password. No error about one shows what is in it."""

from __future__ import annotations

import re
from pathlib import Path

_WORD = re.compile(r"[!-~]*")


class UnusableSecret(OSError):
    """Raised for a file that can be read and holds no secret of the wanted form. The text names the file alone.

    It is an OSError because whoever reads such a file treats both alike.
    """


def secret_text(file: Path) -> str:
    """Return the text of a file of secrets. Raises OSError."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # its cause is not shown, because it has the whole content
        raise UnusableSecret(f"{file} is not a text in UTF-8") from None


def read_secret(file: Path | None) -> str:
    """Return the one word in a file, without white space around it; "" if no file is named. Raises OSError."""
    return "" if file is None else as_secret(secret_text(file), str(file))


def as_secret(text: str, where: str) -> str:
    """Return the text without white space around it.

    Args:
        text: The text.
        where: From where it is, for the error.

    Raises:
        UnusableSecret: A header cannot carry it. An HTTP client's own error would show the whole header, and the log
            would have the secret.
    """
    word = text.strip()
    if _WORD.fullmatch(word) is None:
        raise UnusableSecret(f"{where} does not hold one word of visible ASCII characters, without spaces")
    return word
