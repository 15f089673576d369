# `make demo` or `make test` on a fresh clone is all a newcomer needs; both install first.
#
#   make install      .venv with the versions of constraints.txt, and .venv/bin/prism-fast
#   make demo         the main job on the built-in pipeline; DEMO_ARGS="--full" for every arm
#   make test         tests for everyday use         make test-slow   the long ones
#   make gpu          all of a CUDA device: its tests (gpu-test), operations (gpu-ops), teachers (gpu-teachers), the
#                     trainer (gpu-train), the loaders (gpu-loaders), Stable Diffusion 1.5 and Turbo (gpu-sd15,
#                     gpu-turbo), each at most 8 minutes, the tests 15, and by itself too; results go to bench/results/.
#                     INSTALL=no PYTHON=python3 takes an interpreter as it is: no environment, no native kernels
#   make test-gpu     gpu-test by its other name     make test-oldest the fast ones on the oldest supported versions
#   make native       the C++ and CUDA kernels in place (prism_fast._C); PRISM_FAST_BUILD=cpu|cuda|auto
#   make test-native  their C++ tests, compiling the CUDA sources too where nvcc is; make test includes it
#   make test-sanitize  the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make lint         checks, edits nothing          make format      edits
#   make clean        removes what the tools made; never touches runs/
#
# Overridable: PYTHON (interpreter for the environment, >= 3.11), VENV (where it goes), CONSTRAINTS, PYTEST_ARGS, DEMO_ARGS,
# PRISM_FAST_BUILD (what make native and make test build; setup.py lists the choices), INSTALL, GPU_BATCH (of gpu-sd15
# and gpu-turbo), WORKERS (processes that make test spreads its tests over: as many as there are cores, at most 4;
# WORKERS=0 is one process, which -s needs to show what a test prints).

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=
INSTALL ?= yes
GPU_BATCH ?= 32
# nproc alone would take OMP_NUM_THREADS, a process's threads, for the number of cores.
WORKERS ?= $(shell cores=$$(env -u OMP_NUM_THREADS nproc || echo 1); [ $$cores -lt 4 ] && echo $$cores || echo 4)

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory
.PHONY: install demo native test test-native test-sanitize test-slow test-gpu test-oldest lint format clean reinstall \
  gpu gpu-device gpu-test gpu-ops gpu-teachers gpu-train gpu-loaders gpu-sd15 gpu-turbo gpu-plots

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

# PRISM_FAST_BUILD tells the tests that the extension has to be there. worksteal hands out tests in their order, so
# that most modules stay in one process and make what their tests share once; one worker alone would gain nothing.
SPREAD = $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS) --dist worksteal)

test: install $(NATIVE) test-native
	PRISM_FAST_BUILD=$(or $(PRISM_FAST_BUILD),cpu) $(BIN)/python -m pytest -m 'not slow and not bench' $(SPREAD) $(PYTEST_ARGS)

test-slow: install $(NATIVE)
	PRISM_FAST_BUILD=$(or $(PRISM_FAST_BUILD),cpu) $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# PRISM_FAST_BUILD=none: without an installation nothing is built, and the tests expect nothing.
ifeq ($(INSTALL),no)
GPU_PYTHON := $(or $(PYTHON),python3)
GPU_BUILD := none
gpu-device:
gpu-test: gpu-device
else
GPU_PYTHON := $(BIN)/python
GPU_BUILD := $(or $(PRISM_FAST_BUILD),auto)
gpu-device: install
gpu-test: gpu-device native
endif
GPU_SECONDS := 450
gpu_run = TORCHINDUCTOR_CACHE_DIR='$(CURDIR)/build/inductor' PRISM_FAST_BUILD=$(GPU_BUILD) timeout -k 30 $(GPU_SECONDS) \
  $(GPU_PYTHON)
gpu_throughput = $(gpu_run) -m bench.throughput --device cuda --weights random --teacher random:resnet50 \
  --dtype bfloat16 --batch $(GPU_BATCH) --repeats 2

gpu-device:
	@$(GPU_PYTHON) -c 'import importlib.util, sys; importlib.util.find_spec("torch") or sys.exit("make: no torch here"); \
	import torch; torch.cuda.is_available() or sys.exit("make: torch sees no CUDA device here")'

gpu-test: GPU_SECONDS := 900
gpu-test:
	$(gpu_run) -m bench.gpu_tests $(PYTEST_ARGS)

gpu-ops: gpu-device
	$(gpu_run) -m bench.ops --device cuda

gpu-teachers: gpu-device
	$(gpu_run) -m bench.teachers --device cuda --dtype bfloat16 --pipeline sd15

gpu-train: gpu-device
	$(gpu_run) -m bench.train --device cuda --student resnet50 --teacher resnet50 --classes 1000 --size 224 --batch 256

gpu-loaders: gpu-device
	$(gpu_run) -m bench.loaders --device cuda --workers 8 --workers 16 --batch 256 --images 1024 --student resnet50

gpu-sd15: gpu-device
	$(gpu_throughput) --pipeline sd15

gpu-turbo: gpu-device
	$(gpu_throughput) --pipeline sd-turbo

gpu-plots: gpu-device
	@if $(GPU_PYTHON) -c 'import matplotlib' 2>/dev/null; then $(GPU_PYTHON) -m bench.plot --device cuda; \
	else echo 'make: no matplotlib here: python -m bench.plot --device cuda draws the plots where it is'; fi

# A stage that fails keeps no other from running: each has results of its own.
gpu: gpu-device
	@failed=; for stage in gpu-test gpu-ops gpu-teachers gpu-train gpu-loaders gpu-sd15 gpu-turbo gpu-plots; do $(MAKE) $$stage || failed="$$failed $$stage"; \
	done; [ -z "$$failed" ] || { echo "make: failed:$$failed" >&2; exit 1; }

test-gpu: gpu-test

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
	$(BIN)/clang-format --dry-run --Werror csrc/* $(wildcard tests/csrc/*.* tests/csrc/cuda/*)

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i csrc/* $(wildcard tests/csrc/*.* tests/csrc/cuda/*)

# Environments stay too: they take minutes to make. Remove .venv by hand for a new one.
clean:
	rm -rf build dist *.egg-info prism_fast/*.so compile_commands.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find $(wildcard prism_fast tests bench docs) -type d -name __pycache__ -exec rm -rf {} +
