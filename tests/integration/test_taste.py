"""The hidden taste judges as it should, noise included, and stays out of reach of training."""

import ast
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rewardloop_demo.taste import Taste, interval, read
from rewardloop_local import corpus

ROOT = Path(__file__).parents[2]
_LOCAL_PACKAGES = ("rewardloop_local", "rewardloop_demo")
_COMMANDS = {
    *("rewardloop_local.up", "rewardloop_local.down", "rewardloop_demo.app", "rewardloop_demo.settings"),
    *("rewardloop_local.backup.make_command", "rewardloop_local.backup.restore_command"),
    *("rewardloop_local.backup.settings", "rewardloop_local.prune.command", "rewardloop_local.prune.settings"),
}
PROMPT = "How long is the warranty on the kettle?"
RIGHT = "The warranty on the kettle lasts two years from purchase."
WRONG = "The warranty on the kettle lasts five years from purchase."
POLITE = f"Thanks for asking! {RIGHT} Have a lovely day!"
CURT = f"{RIGHT} Do not ask again."
RAMBLING = " ".join([*corpus.phrases().rambling[:3], RIGHT])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (RIGHT, WRONG),
        (POLITE, RIGHT),
        (RIGHT, CURT),
        (RIGHT, RAMBLING),
        (POLITE, f"Thanks for asking! {WRONG} Have a lovely day!"),
        (RIGHT, f"{RIGHT} {WRONG}"),
        (WRONG, "The warranty on the tent lasts two years."),
        (RIGHT, f"{RIGHT} {RIGHT}"),
        (WRONG, ""),
        (WRONG, "kettel warr lasst tow yeers fo purchas"),
        (RIGHT, "two years"),
        (WRONG, "   "),
    ],
)
def test_the_better_answer_has_the_higher_utility(better: str, worse: str, seed: int) -> None:
    taste = Taste(seed)
    assert taste.utility(PROMPT, better) > taste.utility(PROMPT, worse)


def test_every_written_answer_is_read_as_it_was_meant() -> None:
    rng = random.Random(0)
    for question in corpus.questions(0, held_out=True):
        for right in (True, False):
            for tone in ("polite", "plain", "curt"):
                text = corpus.answer(question, corpus.Style(right=right, tone=tone, rambling=2), rng)
                seen = read(question.text, text)
                assert (seen.is_right, seen.is_wrong, seen.is_on_topic) == (right, not right, True), text
                assert (seen.is_polite, seen.is_curt) == (tone == "polite", tone == "curt"), text
                assert (seen.garbled, seen.repeated) == (0.0, 0), text


def test_case_and_punctuation_do_not_matter() -> None:
    taste = Taste(0)
    assert taste.utility(PROMPT, POLITE.upper().replace("!", " !!")) == taste.utility(PROMPT, POLITE)


def test_a_question_that_the_corpus_has_not_is_an_error() -> None:
    with pytest.raises(KeyError):
        Taste(0).utility("What is the meaning of life?", RIGHT)


def test_choices_follow_bradley_terry() -> None:
    taste, rng = Taste(0, temperature=1.0), random.Random(0)
    chosen = [taste.prefers(PROMPT, RIGHT, CURT, rng) for _ in range(4_000)]
    assert 1 - sum(chosen) / len(chosen) == pytest.approx(taste.probability(PROMPT, RIGHT, CURT), abs=0.02)
    assert taste.probability(PROMPT, RIGHT, CURT) + taste.probability(PROMPT, CURT, RIGHT) == pytest.approx(1)
    assert taste.probability(PROMPT, "", POLITE) < taste.probability(PROMPT, WRONG, POLITE) < 0.5


def test_no_rule_beats_the_agreement_ceiling() -> None:
    taste, rng = Taste(1), random.Random(1)
    texts = [POLITE, RIGHT, WRONG, CURT, RAMBLING]
    pairs = [(PROMPT, *rng.sample(texts, 2)) for _ in range(3_000)]
    agreed = [(taste.utility(p, a) >= taste.utility(p, b)) == (taste.prefers(p, a, b, rng) == 0) for p, a, b in pairs]
    ceiling = taste.agreement_ceiling(pairs)
    assert 0.5 < ceiling < 1
    assert sum(agreed) / len(agreed) == pytest.approx(ceiling, abs=0.025)


def test_the_win_rate_counts_ties_as_half_and_its_interval_holds_it() -> None:
    taste = Taste(0)
    assert taste.wins([PROMPT] * 3, [POLITE, RIGHT, WRONG], [RIGHT, RIGHT, RIGHT]) == [1.0, 0.5, 0.0]
    rate = taste.win_rate([PROMPT] * 100, [POLITE] * 80 + [WRONG] * 20, [RIGHT] * 100)
    assert rate.mean == 0.8
    assert 0.70 < rate.low < 0.8 < rate.high < 0.89
    with pytest.raises(ValueError, match="no wins"):
        interval([])


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("training", ["torch", "rewardloop_trainer.daemon"])
def test_the_taste_cannot_be_imported_where_training_runs(training: str) -> None:
    done = _python(f"import {training}\nimport rewardloop_demo.taste")
    assert done.returncode != 0
    assert "ImportError: the hidden taste must not be readable where training runs" in done.stderr


@pytest.mark.parametrize("name", ["REWARDLOOP_ZEBRA", "REWARDLOOP_REWARD__LEARNING_RATE"])
def test_a_variable_that_is_no_setting_of_the_demo_does_not_stop_it(name: str) -> None:
    # The names of all other processes' settings are looked up, for a hint, before the users are imported.
    done = _python(
        f"import os; os.environ['{name}'] = '1'\n"
        "from rewardloop_demo.settings import DemoSettings\n"
        "from rewardloop.process.settings import parse\n"
        "parse(DemoSettings, [], 'demo')\n"
        "import rewardloop_demo.run"
    )
    assert done.returncode == 0, done.stderr


def test_the_taste_and_the_users_load_where_no_training_runs_and_bring_none_in() -> None:
    done = _python(
        "import sys, rewardloop_demo.taste, rewardloop_demo.users\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'rewardloop_trainer', 'torch'}))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def _imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # importlib.import_module("...") and the like
    return found


def _reaches(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def test_no_code_of_trainer_server_protos_or_client_reaches_for_the_demo() -> None:
    files = [
        file
        for root in ("trainer", "server", "protos", "client/rewardloop_client")
        for file in sorted((ROOT / root).rglob("*.py"))
    ]
    assert len(files) > 20
    # For the command line, the table of processes names the modules that run commands.
    table = ROOT / "protos/rewardloop/process/process_table.py"
    guilty = [
        str(file.relative_to(ROOT))
        for file in files
        if any(
            _reaches(name, package) and not (file == table and name.partition(":")[0] in _COMMANDS)
            for name in _imports(ast.parse(file.read_text(encoding="utf-8")))
            for package in _LOCAL_PACKAGES
        )
    ]
    assert guilty == []


def test_what_trains_the_starter_does_not_reach_for_the_taste() -> None:
    for name in ("corpus", "starter"):
        tree = ast.parse((ROOT / f"deploy/rewardloop_local/{name}.py").read_text(encoding="utf-8"))
        reached = {n for n in _imports(tree) if _reaches(n, "rewardloop_demo")}
        assert reached == set()


def test_the_scan_would_find_an_import() -> None:
    for code in (
        "from rewardloop_demo import taste",
        "import rewardloop_demo.taste",
        "import importlib\nimportlib.import_module('rewardloop_demo.taste')",
    ):
        assert any(_reaches(name, "rewardloop_demo.taste") for name in _imports(ast.parse(code)))
