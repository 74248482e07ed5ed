"""Damage, by chance and reproducibly: to bytes, and to JSON values."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Json = Any

_NUMBERS = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 9 + b"\x01",
)
_TEXTS = (
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"\n",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 30,
    b'"\\ud800"',
    b"\xef\xbb\xbf",
)
_CHANGES = 6
_ENDS = 4096  # structure is at the ends of a graph, weights are between


def mutated(data: bytes, chance: Random, *, texts: bool = False) -> bytes:
    """``data`` with one to six changes; ``texts``: JSON's tokens are among what is put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, _CHANGES)):
        chance.choice(_OPERATIONS)(changed, chance, texts)
    return bytes(changed)


def _place(data: bytearray, chance: Random) -> int:
    size = len(data)
    if size > 2 * _ENDS and chance.random() < 0.8:
        return chance.choice((chance.randrange(_ENDS), size - 1 - chance.randrange(_ENDS)))
    return chance.randrange(size) if size else 0


def _flip(data: bytearray, chance: Random, texts: bool) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: Random, texts: bool) -> None:
    at = _place(data, chance)
    value = _chunk(chance, texts)
    data[at : at + len(value)] = value


def _insert(data: bytearray, chance: Random, texts: bool) -> None:
    at = _place(data, chance)
    data[at:at] = _chunk(chance, texts)


def _delete(data: bytearray, chance: Random, texts: bool) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 1, 2, 4, 8, 64, 1024))]


def _repeat(data: bytearray, chance: Random, texts: bool) -> None:
    at = _place(data, chance)
    part = data[at : at + chance.choice((1, 8, 64, 512))]
    data[at:at] = part * chance.choice((1, 2, 8))


def _move(data: bytearray, chance: Random, texts: bool) -> None:
    at, to = _place(data, chance), _place(data, chance)
    size = chance.choice((1, 4, 16, 128))
    data[to : to + size] = data[at : at + size]


def _cut(data: bytearray, chance: Random, texts: bool) -> None:
    if chance.random() < 0.3:
        del data[_place(data, chance) :]


def _chunk(chance: Random, texts: bool) -> bytes:
    if texts and chance.random() < 0.5:
        return chance.choice(_TEXTS) * chance.choice((1, 1, 1, 50))
    if chance.random() < 0.5:
        return chance.choice(_NUMBERS)
    return chance.randbytes(chance.choice((1, 2, 4, 8)))


_OPERATIONS: tuple[Callable[[bytearray, Random, bool], None], ...] = (
    *(_flip, _flip, _set, _set, _insert, _delete, _repeat, _move, _cut),
)


def other_json(value: Json, chance: Random) -> Json:
    """A copy of which one to three parts, chosen by chance, are replaced, dropped or moved."""
    copy = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        copy = _replaced(copy, chance)
    return copy


def any_json(chance: Random, depth: int = 0) -> Json:
    """Any JSON value, odd ones often."""
    kind = chance.randrange(10 if depth < 4 else 7)
    if kind < 7:
        return chance.choice(
            (
                *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**40, 1.5, 1e308, float("nan"), float("inf")),
                *("", " ", "a", "\ud800", "\0", "é" * 50, "x" * 3000, "../..", "user", "assistant", "tie", "1-0"),
            )
        )
    if kind < 8:
        return [any_json(chance, depth + 1) for _ in range(chance.randrange(5))]
    if kind < 9:
        names = ("prompt", "chosen", "rejected", "role", "content", "", "scale", "version", "x")
        return {chance.choice(names): any_json(chance, depth + 1) for _ in range(chance.randrange(5))}
    deep: Json = "deep"
    for _ in range(chance.choice((5, 50, 400))):
        deep = [deep] if chance.random() < 0.5 else {"content": deep}
    return deep


def _replaced(value: Json, chance: Random) -> Json:
    if not isinstance(value, list | dict) or not value or chance.random() < 0.15:
        return any_json(chance)
    at = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if chance.random() < 0.15:
        del value[at]
    else:
        value[at] = _replaced(value[at], chance)
    return value
