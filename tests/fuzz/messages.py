"""Requests that nobody would send: random messages of a type, and bytes of valid ones gone wrong. Pure and seeded."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_MOST_ITEMS = 5
_MOST_DEPTH = 6

TEXTS = (
    *("", " ", "alpha beta", "gamma", "reward", "policy", "1", "2", "99", "-1", "0x1", "1e9", "user", "assistant"),
    *("\x00", "\n", "‮", "e\u0301" * 50, "😀" * 100, "𝔘" * 20, "[PAD] [CLS] [SEP]", "<end>", "{}", "../../etc/passwd"),
    *("alpha " * 3000, "x" * 100_000, "%s%n", "'; DROP", "\ud7ff", "g1", "a" * 37),
)
FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-300, 1e300, -1.0, float("nan"), float("inf"), float("-inf"), 5e-324, 0.999999)
INTEGERS = (0, 1, 2, 3, 4, 7, 63, 64, 65, 255, 2**31 - 1, -1, -(2**31))
LONG_INTEGERS = (*INTEGERS, 2**32, 2**63 - 1, -(2**63), 253_402_300_800, -62_135_596_801, 1_700_000_000)
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x12, 0xC0, 0xED)

_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 2**32, FieldDescriptor.CPPTYPE_UINT64: 2**64}
_REAL = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


def random_message(kind: type[Message], chance: random.Random, depth: int = 0) -> Message:
    """Some fields set to something of their type."""
    message = kind()
    fill = chance.random()
    for field in kind.DESCRIPTOR.fields:
        if chance.random() > fill:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(chance.randrange(_MOST_ITEMS)):
                getattr(message, field.name)[_text(chance)] = _text(chance)
        elif field.is_repeated:
            for _ in range(_count(chance)):
                _add(getattr(message, field.name), field, chance, depth)
        elif field.message_type is None:
            setattr(message, field.name, _value(field, chance))
        elif depth < _MOST_DEPTH:
            made = random_message(_class_of(field), chance, depth + 1)
            getattr(message, field.name).CopyFrom(made)
    return message


def damaged(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """``data`` after a few accidents; ``others`` are what it may be mixed with."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        data = chance.choice(_ACCIDENTS)(data, others, chance)
    return data[: 2**20]


def _flip(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _replace(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + bytes([chance.choice(BYTES)]) + data[at + 1 :]


def _insert(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.randrange(1, 16)) + data[at:]


def _cut(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _remove(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 9) :]


def _repeat(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.randrange(1, 64)]
    return data[:start] + piece * chance.randrange(1, 50) + data[start:]


def _mix(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _huge_varint(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    """Where a length or a number stands, perhaps."""
    at = chance.randrange(len(data) + 1)
    return data[:at] + b"\xff" * chance.randrange(1, 11) + b"\x7f" + data[at + 1 :]


def _deep(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    """Wrapped as field 1 of field 1 of field 1: parsers bound how deep they go."""
    for _number in range(chance.choice((2, 20, 150))):
        if len(data) > 100_000:
            break
        data = b"\x0a" + _varint(len(data)) + data
    return data


def _unknown_field(data: bytes, _: Sequence[bytes], chance: random.Random) -> bytes:
    tag = _varint(chance.randrange(1, 2**29) << 3 | chance.randrange(8))
    return data + tag + struct.pack("<d", chance.random())


_ACCIDENTS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    *(_flip, _replace, _insert, _cut, _remove, _repeat, _mix, _huge_varint, _deep, _unknown_field),
)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _count(chance: random.Random) -> int:
    return chance.choice((0, 1, 1, 2, 3, _MOST_ITEMS, 40)) if chance.random() < 0.98 else 300


def _add(values: Any, field: FieldDescriptor, chance: random.Random, depth: int) -> None:
    if field.message_type is None:
        values.append(_value(field, chance))
    elif depth < _MOST_DEPTH:
        values.append(random_message(_class_of(field), chance, depth + 1))


def _class_of(field: FieldDescriptor) -> type[Message]:
    made: type[Message] = field.message_type._concrete_class
    return made


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _text(chance) if field.type == FieldDescriptor.TYPE_STRING else chance.randbytes(20)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind in _REAL:
        return chance.choice(FLOATS) if chance.random() < 0.7 else chance.gauss(0, 10)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice((0, 1, 2, 3, 4, 99, -1))
    if kind in _UNSIGNED:
        return chance.choice(INTEGERS) % _UNSIGNED[kind]
    if kind == FieldDescriptor.CPPTYPE_INT32:
        return chance.choice(INTEGERS)
    if kind == FieldDescriptor.CPPTYPE_INT64:
        return chance.choice(LONG_INTEGERS)
    raise AssertionError(field)


def _text(chance: random.Random) -> str:
    return chance.choice(TEXTS) if chance.random() < 0.9 else "".join(chance.choices("ab \n\u00e9\U0001f600", k=9))
