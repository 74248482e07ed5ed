# One-line targets; CI calls the same ones.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3.11

.PHONY: install lock sbom demo test test-long parity learning-matrix lint types protos protos-check observability observability-check docs \
	docs-serve bench clean

# The extras local and test as locked in requirements/; a torch that is there already stays if it is within our range.
$(VENV)/installed: pyproject.toml requirements/dev.txt requirements/torch.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(PY) -m pip install -q --no-deps --require-hashes -r requirements/dev.txt
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	$(PY) requirements/torch_fits.py || $(PY) -m pip install -q -r requirements/torch.txt
	touch $@

install: $(VENV)/installed

# Every lock anew, each package at its newest; then run the tests and commit what has changed.
lock:
	PYTHON=$(PYTHON) requirements/renew.sh

# A bill of materials of each lock, into build/sbom.
sbom:
	PYTHON=$(PYTHON) requirements/sbom.sh

demo: install
	$(VENV)/bin/rewardloop demo

test: install lint types protos-check observability-check docs
	$(PY) -m pytest -q -n auto --dist loadfile -m "not long"

# The tests that kill processes, need other programs, or train for long: what `make test` leaves out.
test-long: install
	$(PY) -m pytest -q -n auto --dist loadfile -m long

# Losses and gradients against TRL on the same tensors.
parity: install
	$(PY) -m pip install -q --no-deps --require-hashes -r requirements/parity.txt && $(PY) -m pytest -q tests/parity

# The tests that train, under other instruction sets, threads and seeds.
learning-matrix: install
	$(PY) tests/learning_matrix.py

lint: install
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports --no-logo

types: install
	$(VENV)/bin/mypy

protos: install
	$(PY) tests/protos_check.py --write

protos-check: install
	$(PY) tests/protos_check.py

# The dashboard and the table of metrics, from their sources.
observability: install
	$(PY) -m rewardloop_observability

observability-check: install
	$(PY) -m rewardloop_observability --check

# The documentation: pages made from code, links checked, nothing fetched. Into build/site.
docs: install
	$(PY) docs/generate.py && $(VENV)/bin/zensical build --strict

docs-serve: install
	$(PY) docs/generate.py && $(VENV)/bin/zensical serve

# Against a running server: make bench BENCH='--lengths real --rate 70%'. Comparisons: tests/bench/README.md.
bench: install
	$(VENV)/bin/rewardloop bench $(BENCH)

clean:
	rm -rf $(VENV) build dist
