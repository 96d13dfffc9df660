# kiss3d: `make demo` shows everything on this machine, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: help setup demo test lint format bench bench-train clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Create .venv and install everything, versions as in constraints.txt

$(VENV)/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kiss3d needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "this Python cannot create environments; on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt -e '.[dev]'
	$(BIN)/kiss3d doctor --warm-up
	@touch $@

demo: setup ## Train, generate and reconstruct on this machine (CPU, a few minutes)
	$(BIN)/kiss3d demo --out demo

test: setup ## Run the whole suite on the CPU
	$(BIN)/python -m pytest

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure reconstruction; results go to benchmarks/results/
	$(BIN)/python -m benchmarks.recon

bench-train: setup ## Measure training steps at FLUX.1-dev's size; needs a GPU
	$(BIN)/python -m benchmarks.train

clean: ## Remove .venv/ and demo/; the runs recorded in mlruns.db stay
	rm -rf $(VENV) demo
