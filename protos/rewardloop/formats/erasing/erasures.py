"""An erasure: whose signals are to be gone for good, told by keyed digests and never by an id in the clear.

The server begins an erasure, and the server and the trainer carry it out. Both ask `Erasures` which signals it covers:

- those of the person, or about the generation, that arrived up to the request, so that neither a spool that is drained
  later nor a backup that is put back brings them back;
- those whose event_id was erased before, whenever they arrive, so that a repeated import brings none of them back.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import secrets
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from rewardloop.formats.signals import key_of
from rewardloop.v1 import feedback_pb2

Kind: TypeAlias = Literal["annotator", "generation"]
KINDS: Final = get_args(Kind)
# The folder of the register beside the ledger, and the file of the keys in it.
ERASURES: Final = "erasures"
ERASURE_KEYS: Final = "keys.json"
TRAINER: Final = "trainer"  # the holder of the ledger, of Redis and of the work directory
# What a signal's clock of arrival may be ahead of that of the server that took the request, in seconds.
CLOCKS_DIFFER_S: Final = 10.0
# How long a look at what would be erased is asked for, and how long its answer holds, in seconds.
LOOK_S: Final = 60
_DIGEST_BYTES = 16
_KEY_BYTES = 32
# Most bytes of a varint that is the length of an id, and of an id: the services take 128 characters, in UTF-8.
_LENGTH_BYTES = 2
_LONGEST_ID_BYTES = 512
_KEPT_DIGESTS = 100_000


class UnreadableErasure(ValueError):
    """Raised for a text that is no erasure."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """A request that signals be erased.

    Attributes:
        erasure_id: Names the request.
        kind: What the digest is of: an annotator_id or a generation_id.
        digest: The keyed digest, in hex.
        key_id: Names the key.
        caller: The caller whose annotator it is; "" for signals without a caller, None for all callers.
        requested_at: When it was asked for, in Unix seconds.
    """

    erasure_id: str
    kind: Kind
    digest: str
    key_id: str
    caller: str | None
    requested_at: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Erasure:
        """Read what `to_json` wrote. Raises UnreadableErasure."""
        try:
            raw: dict[str, Any] = json.loads(text)
            found = cls(**raw)
            if found.kind not in KINDS or not isinstance(found.digest, str):
                raise ValueError(f"kind {found.kind!r}")
            return found
        except (ValueError, TypeError) as error:
            raise UnreadableErasure(f"not an erasure: {error}") from error

    @property
    def look(self) -> str:
        """Names a look at what it would erase: the same one for whoever asks about the same signals."""
        return hashlib.sha256(json.dumps([self.kind, self.digest, self.caller]).encode()).hexdigest()[:32]

    def same_as(self, other: Erasure) -> bool:
        """Whether both ask for the same signals, but for the time."""
        return (self.kind, self.digest, self.caller) == (other.kind, other.digest, other.caller)


@dataclass(frozen=True, slots=True)
class Taught:
    """What the trainer found of signals that nobody has erased yet.

    Attributes:
        looked_at: When, in Unix seconds.
        signals: How many there are in the ledger.
        versions: The versions that learned from them: model, version, and whether directly.
    """

    looked_at: float
    signals: int
    versions: tuple[tuple[str, str, bool], ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Taught:
        """Read what `to_json` wrote. Raises UnreadableErasure."""
        try:
            raw: dict[str, Any] = json.loads(text)
            versions = tuple((str(model), str(version), bool(own)) for model, version, own in raw["versions"])
            return cls(float(raw["looked_at"]), int(raw["signals"]), versions)
        except (ValueError, TypeError, KeyError) as error:
            raise UnreadableErasure(f"no answer to a look: {error}") from error


def new_key() -> tuple[str, bytes]:
    """Make a key, and return its name and the key."""
    secret = secrets.token_bytes(_KEY_BYTES)
    return hashlib.sha256(secret).hexdigest()[:8], secret


def digest_of(secret: bytes, kind: str, text: str) -> bytes:
    """Return the 16 bytes that stand for a text of this kind, which only who has the key can tell of which."""
    return hmac.digest(secret, f"{kind}\0{text}".encode(), "sha256")[:_DIGEST_BYTES]


class Erasures:
    """Tells which signals are erased.

    Args:
        keys: The secrets of the deployment by their names. One is in use; others come from restored backups.
        erasures: Every erasure.
        events: The digests of the event_ids that were erased.
    """

    def __init__(
        self,
        keys: Mapping[str, bytes] | None = None,
        erasures: Iterable[Erasure] = (),
        events: Container[bytes] = frozenset(),
    ) -> None:
        self.keys = dict(keys or {})
        self.all = tuple(erasures)
        self._events = events
        self._by_digest: dict[tuple[str, str], list[Erasure]] = defaultdict(list)
        for each in self.all:
            self._by_digest[each.kind, each.digest].append(each)
        self._digests = functools.lru_cache(_KEPT_DIGESTS)(self._digests_of)

    def key(self) -> tuple[str, bytes] | None:
        """Return the name of the key in use, and the key: the same one for every process. None if there is none."""
        return min(self.keys.items(), default=None)

    def hidden(self, kind: str, text: str) -> str:
        """Return what stands for an id in logs."""
        key = self.key()
        return "hidden" if key is None else digest_of(key[1], kind, text).hex()

    def of(self, event: feedback_pb2.FeedbackEvent) -> tuple[Erasure, ...]:
        """Return the erasures of the person or the generation that cover an event."""
        arrived = event.arrival_time.ToNanoseconds() / 1e9
        return self.of_ids(event.annotator_id, event.generation_id, event.caller, arrived)

    def of_ids(self, annotator_id: str, generation_id: str, caller: str, arrived: float) -> tuple[Erasure, ...]:
        """Return the erasures that cover a signal with these ids that arrived then, in Unix seconds."""
        return tuple(each for each in self._about(annotator_id, generation_id, caller) if _covers(each, arrived))

    def of_person(self, annotator_id: str, caller: str) -> tuple[Erasure, ...]:
        """Return the erasures of a person, whenever the signals came."""
        return tuple(self._about(annotator_id, "", caller))

    def of_generation(self, generation_id: str) -> tuple[Erasure, ...]:
        """Return the erasures of a generation, whoever's feedback about it is erased."""
        digests = self._digests("generation", generation_id) if generation_id else ()
        return tuple(each for digest in digests for each in self._by_digest.get(("generation", digest), ()))

    def event_digests(self, event_id: str, caller: str) -> list[bytes]:
        """Return the digests by which an event_id of a caller may have been erased, of the key in use first."""
        key = key_of(caller, event_id)
        return [digest_of(secret, "event", key) for _, secret in sorted(self.keys.items())]

    def is_erased_event(self, event_id: str, caller: str) -> bool:
        """Whether the signal of an event_id was erased, by the digests that were given."""
        return bool(self._events) and any(each in self._events for each in self.event_digests(event_id, caller))

    def is_erased(self, event: feedback_pb2.FeedbackEvent) -> bool:
        """Whether a signal is not to be kept."""
        if not self.all:
            return False
        return bool(self.of(event)) or self.is_erased_event(event.event_id, event.caller)

    def is_in(self, data: bytes) -> bool:
        """Whether bytes that are no readable event hold the annotator_id or generation_id of an erasure."""
        for field, kind in ((11, "annotator"), (2, "generation")):
            tag, start = bytes([field << 3 | 2]), 0
            while (start := data.find(tag, start)) >= 0:
                start += 1
                text = _text_at(data, start)
                if text and any((kind, each) in self._by_digest for each in self._digests(kind, text)):
                    return True
        return False

    def _about(self, annotator_id: str, generation_id: str, caller: str) -> Iterator[Erasure]:
        for kind, text in (("annotator", annotator_id), ("generation", generation_id)):
            for digest in self._digests(kind, text) if text else ():
                for each in self._by_digest.get((kind, digest), ()):
                    if each.caller is None or each.caller == caller:
                        yield each

    def _digests_of(self, kind: str, text: str) -> tuple[str, ...]:
        return tuple(digest_of(secret, kind, text).hex() for secret in self.keys.values())


def _text_at(data: bytes, start: int) -> str:
    """Return the text whose length, a varint, stands at ``start``; "" for none, or for one that is too long for ids."""
    length = shift = 0
    for at in range(start, min(start + _LENGTH_BYTES, len(data))):
        length |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            return data[at + 1 : at + 1 + length].decode(errors="replace") if length <= _LONGEST_ID_BYTES else ""
    return ""


def _covers(erasure: Erasure, arrived: float) -> bool:
    return arrived <= erasure.requested_at + CLOCKS_DIFFER_S
