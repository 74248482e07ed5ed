"""What an erasure found and where, in the words that the command line and the console say."""

from __future__ import annotations

from collections.abc import Mapping

# By the name of the count.
_PLACES: Mapping[str, str] = {
    "anchors": "among the anchors of gates",
    "answers": "answers of labellers",
    "crowd": "in the record of how signals were given",
    "dead_letters": "among the dead letters",
    "examples": "examples in rounds of the console",
    "files": "files that were left over",
    "generations": "generations",
    "ledger": "in the ledger",
    "people": "among the people and mutes of the console",
    "pools": "in the pools of training",
    "replies": "replies of chat models in checks",
    "reports": "published reports",
    "stream": "in the stream of signals",
    "trust": "in files of what people weigh",
}


def erased_in_words(erased: Mapping[str, int]) -> str:
    """Return what was erased and where. A signal counts once in each place that held something of it."""
    found = [f"{count} {_PLACES.get(name, name.replace('_', ' '))}" for name, count in sorted(erased.items())]
    return ", ".join(found) or "nothing"
