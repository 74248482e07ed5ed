"""People as the judge of two policies: the pairs that they are asked, and what they answered.

The pairs become tasks of the console by ``rewardloop label import``. The answers come back by ``rewardloop label export
--format answers``, and are matched by what was asked and said: a policy that is asked again with the same seed says the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rewardloop_data.rows import Json, RowError, turns_of
from rewardloop_data.source_file import SourceFile
from rewardloop_data.written_rows import asked
from rewardloop_trainer.assessment.policies.head_to_head import Answers
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.judging.judge import Answer, Duel, Opinion, choice_of


class UnusableAnswers(ValueError):
    """Raised for a row that is no answer of a labeller to a pair. The message names the file and the line."""


def write_pairs(path: Path, prompts: Sequence[Prompt], ours: Answers, theirs: Answers) -> int:
    """Write the first answers of two policies as rows {prompt, responses}, which do not say whose they are.

    Equal answers and empty ones are left out: nobody can choose between them.

    Returns:
        The rows.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for prompt, (one, *_), (other, *_) in zip(prompts, ours.texts, theirs.texts, strict=True):
            if one.strip() and other.strip() and one != other:
                file.write(json.dumps({**asked(prompt), "responses": [one, other]}, ensure_ascii=False) + "\n")
                count += 1
    return count


@dataclass(slots=True)
class _Votes:
    """What people said of two responses: what the first one won of each vote, and what the one that was shown first."""

    wins: list[float] = field(default_factory=list)
    first_shown: list[float] = field(default_factory=list)


class PeopleJudge:
    """A `Judge` by people's answers to pairs. Of a pair that nobody was asked it has no opinion."""

    def __init__(self, votes: dict[tuple[bytes, str, str], _Votes], people: int) -> None:
        self._votes, self._people = votes, people

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Read the answers of files. Skips and repeated answers count nothing.

        Raises:
            UnusableAnswers: If a row has another form, or there is no answer.
            UnreadableFile: If a file cannot be read.
        """
        votes: dict[tuple[bytes, str, str], _Votes] = {}
        people: set[str] = set()
        for path in paths:
            for line in SourceFile.of(path).lines():
                try:
                    row = line.value()
                    found = _vote(row)
                except (RowError, KeyError, TypeError, ValueError, IndexError) as error:
                    told = str(error) if isinstance(error, RowError) else "is no row of `label export --format answers`"
                    raise UnusableAnswers(f"{path}:{line.number}: {told}") from error
                if found is not None:
                    prompt, one, other, wins, first_shown, who = found
                    of_pair = votes.setdefault(_pair(prompt, one, other), _Votes())
                    of_pair.wins.append(wins if one <= other else 1 - wins)
                    of_pair.first_shown.append(first_shown)
                    people.add(who)
        if not votes:
            raise UnusableAnswers("no answer of people prefers one of two responses, or calls them equal")
        return cls(votes, len(people))

    @property
    def name(self) -> str:
        return f"{self._people} people"

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        """Return the majority of people's answers to each duel; see `Judge.compare`."""
        return [self._opinion(duel) for duel in duels]

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return None for each: people were asked for comparisons; see `Judge.rate`."""
        return [None] * len(answers)

    def _opinion(self, duel: Duel) -> Opinion | None:
        votes = self._votes.get(_pair(duel.prompt, duel.first, duel.second))
        if votes is None or duel.first == duel.second:
            return None
        share = sum(votes.wins) / len(votes.wins)
        share = share if duel.first <= duel.second else 1 - share
        return Opinion(choice_of(share), share, first_shown=sum(votes.first_shown) / len(votes.first_shown))


def _pair(prompt: Prompt, one: str, other: str) -> tuple[bytes, str, str]:
    """The key of two responses, in whatever order they are named."""
    return (prompt_key(prompt), one, other) if one <= other else (prompt_key(prompt), other, one)


def _vote(row: Json) -> tuple[Prompt, str, str, float, float, str] | None:
    """Return prompt, two responses, what the first won, what the one shown first won, and who said it.

    Returns:
        None for a skip and for a repeated answer.

    Raises:
        RowError, KeyError, TypeError, ValueError, IndexError: If it is no such row.
    """
    if not isinstance(row, dict):
        raise RowError("is not an object")
    verdict, candidates, order = row["verdict"], row["candidates"], row["display_order"]
    if not (isinstance(verdict, dict) and isinstance(candidates, list) and isinstance(order, list)):
        raise RowError("verdict, candidates and display_order have another form")
    if "skip" in verdict or row["is_repeat"] is True:
        return None
    if len(candidates) != 2 or sorted(map(str, order)) != ["0", "1"]:
        raise RowError(f"compares {len(candidates)} responses, not 2")
    texts = [each["text"] for each in candidates if isinstance(each, dict)]
    one, other = (text for text in texts if isinstance(text, str))
    prompt = turns_of("prompt", row["prompt"], row.get("tools"))
    if isinstance(choice := verdict.get("choice"), dict):
        chosen = int(str(choice["chosen"]))
        if {chosen, int(str(choice["rejected"]))} != {0, 1}:
            raise RowError("verdict.choice: names no two responses")
        return prompt, one, other, float(chosen == 0), float(order[0] == chosen), str(row["annotator"])
    if "tie" in verdict:
        return prompt, one, other, 0.5, 0.5, str(row["annotator"])
    raise RowError(f"verdict: is {', '.join(verdict) or 'none'}, not a choice or a tie")
