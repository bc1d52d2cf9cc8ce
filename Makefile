# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/digits.yaml

.PHONY: demo test test-all lint setup clean

demo: setup
	$(BIN)/attar run $(RECIPE)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-all: setup
	$(BIN)/python -m pytest -m 'not device'

setup: $(VENV)/.ready

# torch goes first and with an upper bound, so that a CPU build that is at hand is taken and no CUDA packages come along.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.10,<2.14'
	$(BIN)/python -m pip install --quiet --editable '.[compress,dev]'
	touch $@

clean:
	rm -rf $(VENV) .attar runs build dist *.egg-info
