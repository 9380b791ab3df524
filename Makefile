# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq -c constraints.txt
READY := .venv/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-extras test-long lint format bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# PyTorch first and alone, so that its build is chosen by PyTorch's own version and nothing else.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv
	@echo "Installing PyTorch (the largest download, some minutes) ..."
	@$(PIP) torch==2.13.0
	@echo "Installing PUMA-Edge and what it needs ..."
	@$(PIP) -e '.[cpu,export,fast,hnsw,openvino,plot,qdrant,trt-rtx,dev]'
	@touch $@

demo: $(READY) ## Run the whole path on the sample data, anew, in demo/
	@rm -rf demo
	@$(BIN)/puma-edge demo --out demo

test: $(READY) ## Run the tests that need no GPU and no extra environment
	@$(BIN)/python -m pytest -q --durations=10

# pytest leaves with 5 where no test carries the marker.
test-extras: $(READY) ## Run the tests that need an extra environment
	@$(BIN)/python -m pytest -q --durations=10 -m extra || [ $$? -eq 5 ]

test-long: $(READY) ## Run the tests that take minutes: a hundred kills, a minute of damaged files
	@$(BIN)/python -m pytest -q --durations=10 -m long

lint: $(READY) ## Check style, types and the import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## Format the code, and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench: $(READY) ## Time the demo's bundle against PyTorch
	@test -d demo/bundle || { echo "make: there is no demo/bundle; make demo first" >&2; exit 1; }
	@cd demo && ../$(BIN)/puma-edge bench

clean: ## Delete what the targets made, .venv included
	rm -rf .venv demo build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache \
	    .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
