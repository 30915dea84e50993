# Needs make and Python 3.11 or newer; everything else is installed into .venv from constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
# Such as https://download.pytorch.org/whl/cpu, where the default index would bring CUDA libraries that are not needed.
TORCH_INDEX ?=
COVERAGE_FLOOR := 80
PYTEST_ARGS ?=
# Inside a container of one user, pip's warnings about root and its own version help nobody.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input

help:
	@echo "make demo    the whole road: data -> S3 -> training -> registry -> HTTP -> metrics (KEEP=1: go on serving)"
	@echo "make test    set up, check, and run all tests"
	@echo "make check   ruff, mypy and the import contracts"
	@echo "make format  let ruff put the code in order"
	@echo "make setup   create $(VENV)"
	@echo "make bench-serve, bench-data, bench-metrics, ...: write tests/benchmarks/RESULTS.md"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 is on PATH. Install Python 3.11, or run: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old. Install Python 3.11, or run: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing packages (a minute or two; longer the first time)"
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) install -c constraints.txt setuptools wheel
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,test]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/recurra demo

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR) $(PYTEST_ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-%: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_$*.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
