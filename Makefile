# `make demo` or `make test` on a fresh clone is all a newcomer needs; both install first.
#
#   make install      .venv with the versions of constraints.txt, and .venv/bin/prism-fast
#   make demo         the main job on the built-in pipeline; DEMO_ARGS="--full" for every arm
#   make test         tests for everyday use         make test-slow   the long ones
#   make test-gpu     tests that need a CUDA device  make test-oldest the fast ones on the oldest supported versions
#   make lint         checks, edits nothing          make format      edits
#   make clean        removes what the tools made; never touches runs/
#
# Overridable: PYTHON (interpreter for the environment, >= 3.11), VENV (where it goes), CONSTRAINTS, PYTEST_ARGS, DEMO_ARGS.

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: install demo test test-slow test-gpu test-oldest lint format clean reinstall

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The stamp holds the folder it was made in: a copied or half-removed environment is not a valid one.
ifneq ($(shell test -x $(BIN)/python -a -x $(BIN)/prism-fast && cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): reinstall
endif

install: $(STAMP)

# The stamp appears last and carries the time at which the installation began, so neither an interrupted run nor a
# file edited meanwhile leaves a stamp that is newer than what it stands for.
$(STAMP): pyproject.toml setup.py $(CONSTRAINTS)
	@rm -f $(STAMP)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  python=$$(PYTHON='$(PYTHON)' sh .ci/find-python) && echo "make: new environment $(VENV) with $$python" && \
	  "$$python" -m venv --clear $(VENV); }
	@printf '%s\n' '$(CURDIR)' > $(STAMP).partial
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[dev]'
	@$(BIN)/python -c 'import prism_fast' && test -x $(BIN)/prism-fast
	@mv $(STAMP).partial $(STAMP)

demo: install
	$(BIN)/prism-fast demo $(DEMO_ARGS)

test: install
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-gpu: install
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Environments stay too: they take minutes to make. Remove .venv by hand for a new one.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find $(wildcard prism_fast tests bench docs) -type d -name __pycache__ -exec rm -rf {} +
