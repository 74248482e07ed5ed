"""Tells by its phrases whether an answer declines."""

from __future__ import annotations

import re

_BEGINNING = 300  # a refusal says so in its first characters
# How models refuse in English, German, French, Spanish and Chinese, at the beginning of an answer.
_REFUSALS = re.compile(
    r"""
    \bI(?:\ am|['’]m)\ (?:\w+\ )?(?:sorry|afraid|unable|not\ able)
    | \bI\ (?:can(?:not|['’]t|\ not)|won['’]t|will\ not|must\ decline|have\ to\ decline|do(?:\ not|n['’]t)\ feel\ comf)
    | \bas\ an\ AI\b | \bunable\ to\ (?:help|assist|comply)
    | \btut\ mir\ leid\b | \bes\ tut\ mir\ leid\b | \bich\ kann\ (?:\w+\ ){0,3}nicht\b | \bdabei\ kann\ ich\b
    | \bje\ ne\ (?:peux|suis)\b | \bje\ suis\ désolée?\b | \bdésolée?,
    | \blo\ siento\b | \bno\ puedo\b | \bme\ temo\ que\b
    | 抱歉 | 对不起 | 我(?:不能|无法|没有办法)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_refusal(text: str) -> bool:
    """Say whether an answer begins by declining, as far as phrases tell. It knows five languages and no paraphrase."""
    return _REFUSALS.search(text[:_BEGINNING]) is not None
