"""The table of attacks names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attack.catalogue import ATTACKS

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("test", sorted({test for attack in ATTACKS for test in attack.tests}))
def test_an_attack_names_a_test_that_exists(test: str) -> None:
    place, _, name = test.partition("::")
    found = TESTS / place
    text = "".join(file.read_text() for file in ([found] if found.is_file() else found.glob("test_*.py")))
    assert re.search(rf"def {re.escape(name)}\(" if name else r"def test_", text)


def test_every_file_of_attacks_is_in_the_table() -> None:
    named = {test.partition("::")[0] for attack in ATTACKS for test in attack.tests}
    assert {f"attack/{path.name}" for path in (TESTS / "attack").glob("test_*.py")} <= named
