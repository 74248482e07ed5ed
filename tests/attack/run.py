"""Carries out every attack and prints the table of what became of it.

    python tests/attack/run.py [WORD ...] [--out docs/explanation/attacks.md]

With words, only the attacks with one of them in their row. The exit status is 1 if a test of an attack failed or if
none ran; a test that was skipped, because a program is missing here, is counted apart.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from attack.catalogue import ATTACKS, Attack  # noqa: E402  # found by the line above

HEAD = """# Attacks, and what becomes of them

`python tests/attack/run.py --out docs/explanation/attacks.md` carried out each of these and wrote this page. The
columns count the tests that carry an attack out.

| by | attack | what becomes of it | passed | failed | skipped |
| --- | --- | --- | --- | --- | --- |
"""


class Outcomes:
    """Collects the outcome of each test as a plugin of pytest."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid] = report.outcome

    def count(self, attack: Attack) -> Counter[str]:
        """Return how many tests of an attack passed, failed and were skipped."""
        return Counter(
            outcome
            for node, outcome in self.of.items()
            if any(
                node == f"tests/{test}" or node.startswith((f"tests/{test}::", f"tests/{test}[", f"tests/{test}/"))
                for test in attack.tests
            )
        )


def row(attack: Attack, counts: Counter[str]) -> str:
    """Return the attack's line of the table."""
    return (
        f"| {attack.by} | {attack.name} | {attack.outcome} | {counts['passed']} | {counts['failed']} | "
        f"{counts['skipped']} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only attacks with one of these words in their row")
    parser.add_argument("--out", type=Path, help="write the page here")
    asked = parser.parse_args()
    words = [word.lower() for word in asked.words]
    chosen = [a for a in ATTACKS if not words or any(word in row(a, Counter()).lower() for word in words)]
    if not chosen:
        parser.error("no attack has any of these words")
    tests = list(dict.fromkeys(str(TESTS / test) for attack in chosen for test in attack.tests))
    outcomes = Outcomes()
    status = int(pytest.main(["-q", "-m", "", f"--rootdir={TESTS.parent}", *tests], plugins=[outcomes]))
    rows = [row(attack, outcomes.count(attack)) for attack in chosen]
    print("\n".join([*HEAD.splitlines()[-2:], *rows]))
    if asked.out is not None:
        asked.out.write_text(HEAD + "\n".join(rows) + "\n")
    return int(status != 0 or any(not outcomes.count(attack)["passed"] for attack in chosen))


if __name__ == "__main__":
    raise SystemExit(main())
