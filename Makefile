# One-line targets; CI calls the same ones.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3.11
EXTRAS ?= local,test

.PHONY: install demo test parity learning-matrix lint types protos protos-check observability observability-check bench clean

$(VENV)/installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(PY) -m pip install -q -e '.[$(EXTRAS)]'
	touch $@

install: $(VENV)/installed

demo: install
	$(VENV)/bin/rewardloop demo

test: install lint types protos-check observability-check
	$(PY) -m pytest -q -n auto --dist loadfile

# Losses and gradients against TRL on the same tensors.
parity: install
	$(PY) -m pip install -q -e '.[parity]' && $(PY) -m pytest -q tests/parity

# The tests that train, under other instruction sets, threads and seeds.
learning-matrix: install
	$(PY) tests/learning_matrix.py

lint: install
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: install
	$(VENV)/bin/mypy

protos: install
	$(PY) tests/protos_check.py --write

protos-check: install
	$(PY) tests/protos_check.py

# The dashboard and the table of metrics, from their sources.
observability: install
	$(PY) deploy/observability/dashboard.py && $(PY) deploy/observability/metrics_table.py

observability-check: install
	$(PY) deploy/observability/dashboard.py --check && $(PY) deploy/observability/metrics_table.py --check

# Against a running server: make bench BENCH='--lengths real --rate 70%'. Comparisons: tests/bench/README.md.
bench: install
	$(VENV)/bin/rewardloop bench $(BENCH)

clean:
	rm -rf $(VENV) build dist
