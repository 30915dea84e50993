# Needs make and Python 3.11 or newer; everything else is installed into .venv from constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-nodes check style format clean bench-step

VENV ?= .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/installed-demo
STAMP := $(VENV)/installed-test
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
# An index of CPU builds, where the default one would bring CUDA libraries that are not needed.
TORCH_INDEX ?=
COVERAGE_FLOOR := 80
PYTEST_ARGS ?=
NODE_LOST := tests/distributed/test_training.py::test_a_run_that_loses_all_workers_and_a_node_and_then_its_driver_ends_exactly
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
# pip compiles everything on one core; without any bytecode Ray's first start is so slow that it gives up.
RARELY := /tests?/|/testing/|/rllib/|/ray/llm/|/_inductor/|/_dynamo/|/torch/onnx/|/(sympy|networkx|pip|pygments)/
COMPILE = $(BIN)/python -m compileall -q -j 0 -x '$(RARELY)' $(VENV)/lib platform >/dev/null || true
# Where the environment forbids bytecode, each process of Ray Train and Serve would compile what is left, every time anew.
export PYTHONDONTWRITEBYTECODE :=

help:
	@echo "make demo    the whole road: data -> S3 -> training -> registry -> HTTP -> metrics (KEEP=1: go on serving)"
	@echo "make test    set up, check, and run all tests"
	@echo "make test-nodes  loses whole Ray nodes and the head, under sessions and training; needs the machine for itself"
	@echo "make check   ruff, mypy and the import contracts"
	@echo "make format  let ruff put the code in order"
	@echo "make setup   create $(VENV)"
	@echo "make bench-data, bench-ntm, bench-step, bench-train, bench-overlap, bench-checkpoint, bench-algorithmic,"
	@echo "             bench-serve, bench-overload, bench-sessions, bench-autoscale: ours beside the peers, if any;"
	@echo "             results are kept in tests/benchmarks/RESULTS.md"

setup: $(STAMP)

# What the demo needs; the tests' tools come on top of it.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 is on PATH. Install Python 3.11, or run: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old. Install Python 3.11, or run: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv --clear $(VENV); } || \
	  { echo "$(PYTHON) cannot make environments. On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "installing packages into $(VENV): a minute or two, longer the first time"
	@$(PIP) install --no-compile --root-user-action=ignore -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch setuptools
	@$(PIP) install --no-compile --root-user-action=ignore -c constraints.txt --no-build-isolation -e '.[demo]'
	@$(COMPILE)
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "installing what the tests need"
	@$(PIP) install --no-compile --root-user-action=ignore -c constraints.txt --no-build-isolation -e '.[demo,test]'
	@$(COMPILE)
	@touch $@

demo: $(DEMO_STAMP)
	@$(BIN)/recurra demo

check: style
	$(BIN)/mypy
	$(BIN)/lint-imports

style: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# mypy computes beside the tests, which often wait; what lint-imports does is one of the tests.
test: style
	@echo "$(BIN)/mypy, beside the tests"
	@nice $(BIN)/mypy & types=$$!; trap 'kill $$types 2>/dev/null || true' EXIT; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR) $(PYTEST_ARGS); \
	wait $$types

test-nodes: $(STAMP)
	RECURRA_TEST_NODES=1 $(BIN)/python -m pytest tests/distributed/test_nodes.py $(NODE_LOST)

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-step: $(STAMP)
	@$(PIP) install --root-user-action=ignore -c constraints.txt --no-build-isolation -e '.[export]'
	$(BIN)/python tests/benchmarks/bench_step.py

bench-%: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_$*.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
