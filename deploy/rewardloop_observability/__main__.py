"""Writes deploy/observability/dashboard.json and the table of metrics in deploy/observability/README.md.

python -m rewardloop_observability            writes both
python -m rewardloop_observability --check    ends with status 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewardloop_observability import dashboard, metrics_table

FOLDER = Path(__file__).parents[1] / "observability"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser("rewardloop_observability", description="Writes the dashboard and the table.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a file is out of date")
    is_check = parser.parse_args(argv).check
    readme = FOLDER / "README.md"
    made = {
        FOLDER / "dashboard.json": dashboard.build(),
        readme: metrics_table.with_table(readme.read_text(encoding="utf-8")),
    }
    outdated = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in outdated:
        if is_check:
            print(f"{path} is out of date: run 'make observability'", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf-8")
    return 1 if is_check and outdated else 0


if __name__ == "__main__":
    raise SystemExit(main())
