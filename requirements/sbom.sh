#!/usr/bin/env bash
# Write a software bill of materials (CycloneDX 1.6) of each lock into build/sbom: `make sbom`.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=build/sbom-tools
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install -q cyclonedx-bom==7.5.0
mkdir -p build/sbom
for lock in dev parity server server-cuda trainer; do
    "$tools/bin/cyclonedx-py" requirements --pyproject pyproject.toml --output-reproducible \
        --output-format JSON --output-file "build/sbom/$lock.json" "requirements/$lock.txt"
done
