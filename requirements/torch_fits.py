"""Exit with 0 if this environment holds a torch within the range of pyproject.toml, else with 1."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def main() -> int:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needs = map(Requirement, project["optional-dependencies"]["trainer-common"])
    (wanted,) = (need.specifier for need in needs if need.name == "torch")
    try:
        installed = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return 1
    # A vendor's own build may count as a pre-release: 2.12.0a0+nv26.5.
    return 0 if wanted.contains(installed, prereleases=True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
