"""CONTRIBUTING's lists of the files to touch are whole: each names every file that its example is in."""

from __future__ import annotations

import re

import pytest
from support.documents import PRODUCT, ROOT, code_of, tracked

# Heading of a list -> how its example is written in code.
EXAMPLES = {
    "A loss of DPO": r"\bhinge\b",
    "An algorithm": r"\b(rloo|Rloo|RLOO)\b",
    "A kind of signal": r"\b([Tt]ie|TIE|tie_weight)\b",
    "A metric": r"event_loop_lag",
    "An RPC": r"SetShadow|set_shadow|SET_SHADOW",
    "A page of the console": r"\bPEOPLE\b",
    "An execution provider": r"\b[Tt]ensorrt\b",
}

# Written by a command, from files that the lists name; and prose.
_GENERATED = re.compile(
    r"_pb2(_grpc)?\.pyi?$|^deploy/observability/dashboard\.json$|^client/javascript/rewardloop-feedback\.js$"
)
_CODE = (".py", ".proto", ".json", ".toml", ".yml", ".yaml", ".lua", ".js")


def section(heading: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n### {heading}\n")
    assert found, f"CONTRIBUTING has no section {heading!r}"
    return re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("heading", EXAMPLES)
def test_list_of_files_to_touch_is_whole(heading: str) -> None:
    listed = set(re.findall(r"^- `([^`]+)`:", section(heading), re.MULTILINE))
    product = [path for path in tracked() if path.startswith(PRODUCT) and path.endswith(_CODE)]
    pattern = re.compile(EXAMPLES[heading])
    standing = {path for path in product if not _GENERATED.search(path) and pattern.search(code_of(path))}
    unlisted, absent = sorted(standing - listed), sorted(listed - standing)
    assert not unlisted, f"the example is in these files, which the list does not name: {unlisted}"
    assert not absent, f"the list names these files, which the example is not in: {absent}"


@pytest.mark.parametrize("heading", [heading for heading in EXAMPLES if heading != "A metric"])
def test_tests_of_a_list_test_its_example(heading: str) -> None:
    named = re.findall(r"`(tests/[^`]+\.py)`", section(heading))
    assert named
    pattern = re.compile(EXAMPLES[heading], re.IGNORECASE)
    assert [path for path in named if not pattern.search((ROOT / path).read_text(encoding="utf-8"))] == []
