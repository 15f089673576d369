# `make demo` or `make test` on a fresh clone is all a newcomer needs; both install first.
#
#   make install      .venv with the versions of constraints.txt, and .venv/bin/prism-fast
#   make demo         the main job on the built-in pipeline; DEMO_ARGS="--full" for every arm
#   make test         tests for everyday use         make test-slow   the long ones
#   make test-gpu     tests that need a CUDA device  make test-oldest the fast ones on the oldest supported versions
#   make native       the C++ and CUDA kernels in place (prism_fast._C); PRISM_FAST_BUILD=cpu|cuda|auto
#   make test-native  their C++ tests, compiling the CUDA sources too where nvcc is; make test includes it
#   make test-sanitize  the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make lint         checks, edits nothing          make format      edits
#   make clean        removes what the tools made; never touches runs/
#
# Overridable: PYTHON (interpreter for the environment, >= 3.11), VENV (where it goes), CONSTRAINTS, PYTEST_ARGS, DEMO_ARGS,
# PRISM_FAST_BUILD (what make native and make test build; setup.py lists the choices).

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory
.PHONY: install demo native test test-native test-sanitize test-slow test-gpu test-oldest lint format clean reinstall

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
	PRISM_FAST_BUILD=none $(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[dev]'  # isolated: no torch to build with
	@$(BIN)/python -c 'import prism_fast' && test -x $(BIN)/prism-fast
	@mv $(STAMP).partial $(STAMP)

demo: install
	$(BIN)/prism-fast demo $(DEMO_ARGS)

# The extension lies in the package and fits the torch of one environment: NATIVE names that one. Tests need only its
# CPU kernels and take what is there while it is newer than its sources.
NATIVE := build/native
NATIVE_SOURCES := setup.py $(wildcard csrc/*)
ifneq ($(shell cat $(NATIVE) 2>/dev/null),$(CURDIR) $(VENV))
$(NATIVE): reinstall
endif
build_native = rm -f prism_fast/_C*.so && PRISM_FAST_BUILD=$(1) $(BIN)/python setup.py -q build_ext --inplace --force && \
  mkdir -p build && printf '%s\n' '$(CURDIR) $(VENV)' > $(NATIVE)

$(NATIVE): $(STAMP) $(NATIVE_SOURCES)
	$(call build_native,$(or $(PRISM_FAST_BUILD),cpu))

native: install
	$(call build_native,$(or $(PRISM_FAST_BUILD),auto))

# PRISM_FAST_BUILD tells the tests that the extension has to be there.
test: install $(NATIVE) test-native
	PRISM_FAST_BUILD=$(or $(PRISM_FAST_BUILD),cpu) $(BIN)/python -m pytest -m 'not slow and not bench' $(PYTEST_ARGS)

test-slow: install $(NATIVE)
	PRISM_FAST_BUILD=$(or $(PRISM_FAST_BUILD),cpu) $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-gpu: native
	PRISM_FAST_BUILD=$(or $(PRISM_FAST_BUILD),auto) $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

CMAKE = $(firstword $(wildcard $(BIN)/cmake) cmake)
CTEST = $(firstword $(wildcard $(BIN)/ctest) ctest)
CONFIGURE = $(CMAKE) -S . -Wno-dev -DPYTHON='$(abspath $(BIN))/python'
CUDA_TOOLKIT = $(shell $(BIN)/python -c 'import setup; print(setup.cuda_toolkit() or "")')

test-native: install
	@mkdir -p build
	@$(CONFIGURE) -B build/cmake -DCUDA_TOOLKIT='$(CUDA_TOOLKIT)' > build/cmake.log || { cat build/cmake.log; exit 1; }
	@ln -sf build/cmake/compile_commands.json .  # for editors
	@if [ -n '$(CUDA_TOOLKIT)' ]; then echo 'make: compiling the CUDA sources with $(CUDA_TOOLKIT) for sm_80, sm_90, sm_120'; \
	else echo 'make: no CUDA toolkit found, so the CUDA sources are not compiled'; fi
	$(CMAKE) --build build/cmake -j 2 --target all $(if $(CUDA_TOOLKIT),prism_fast_cuda)
	$(CTEST) --test-dir build/cmake --output-on-failure

test-sanitize: install
	$(CONFIGURE) -B build/sanitize -DSANITIZE=ON
	$(CMAKE) --build build/sanitize -j 2
	$(CTEST) --test-dir build/sanitize --output-on-failure

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror csrc/* tests/csrc/*

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i csrc/* tests/csrc/*

# Environments stay too: they take minutes to make. Remove .venv by hand for a new one.
clean:
	rm -rf build dist *.egg-info prism_fast/*.so compile_commands.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find $(wildcard prism_fast tests bench docs) -type d -name __pycache__ -exec rm -rf {} +
