#!/usr/bin/env bash
# Write every lock anew, each package at the newest version that pyproject.toml admits: `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/lock
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install -q --upgrade uv

# compile LOCK ARGUMENT...: one file for every Python from 3.11 and every platform of uv.toml.
compile() {
    "$tools/bin/uv" pip compile -q --config-file requirements/uv.toml --universal --python-version 3.11 --upgrade \
        --generate-hashes --no-emit-package torch --no-annotate --custom-compile-command "make lock" \
        --output-file "$1" "${@:2}" pyproject.toml
}

# Resolved together first, so that a package has the same version in every lock.
compile "$tools/all.txt" --extra local --extra test --extra parity --extra gpu
lock() { compile "requirements/$1.txt" --constraint "$tools/all.txt" "${@:2}"; }
lock dev --extra local --extra test
lock parity --extra parity
lock server --extra server
lock server-cuda --extra gpu
lock trainer --extra trainer
