# make demo and make test install what they need into $(VENV); everything else is plain Python packaging.

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

# The first interpreter that can make an environment for this package; override with PYTHON=/path/to/python3.11.
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3 python; do \
	if $$candidate -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$candidate; break; fi; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := requirements/test.txt
PARITY := requirements/parity.txt
PACKAGE_STAMP := $(VENV)/.installed-package
TEST_STAMP := $(VENV)/.installed-test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint typecheck pytest format lock clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(PACKAGE_STAMP)  ## install, then reconstruct the embedded slice: the main job in one command
	$(BIN)/ambient-mri demo

test: lint typecheck pytest  ## install the tested set, lint, type-check, test

lint: $(TEST_STAMP)  ## ruff
	$(BIN)/ruff check .

typecheck: $(TEST_STAMP)  ## mypy
	$(BIN)/mypy ambient_mri

# As many processes as cores (four at most), one thread each: the work of a test is too small to share among threads.
pytest: export OMP_NUM_THREADS ?= 1
pytest: $(TEST_STAMP)  ## the fast tests; more with PYTEST_ARGS="-m slow", in one process with PYTEST_ARGS="-n 0"
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

format: $(TEST_STAMP)  ## sort imports, apply ruff's safe fixes and its formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The package, with its dependencies held to the locked versions.
$(PACKAGE_STAMP): pyproject.toml $(LOCK)
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	    echo "ambient_mri needs Python 3.11 or 3.12 with the venv module; found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)." >&2; \
	    echo "Install one (Debian: apt install python3-venv) or name it: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; \
	    exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint $(LOCK) --editable .
	@touch $@

# Test tools and extras; then fastMRI without the dependencies that it declares and never imports.
$(TEST_STAMP): $(PACKAGE_STAMP) $(PARITY)
	$(PIP) install --requirement $(LOCK)
	$(PIP) install --no-deps --requirement $(PARITY)
	@touch $@

# Newest versions that pyproject.toml allows, with the torch of the present lock; `make test` is what makes them "tested".
lock:  ## write requirements/test.txt anew
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install "$$(grep '^torch==' $(LOCK))"
	.venv-lock/bin/python -m pip install '.[dev]' editables
	{ grep '^#' $(LOCK); .venv-lock/bin/python -m pip freeze --all | sed 's/+cpu$$//' \
	    | grep -viE '^(pip==|ambient|cuda|nvidia|triton)' | LC_ALL=C sort -f; } > $(LOCK).new
	mv $(LOCK).new $(LOCK)
	rm -rf .venv-lock

clean:  ## remove caches and build products
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ambient_mri tests benchmarks data_prep -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the environment, too
	rm -rf $(VENV)
