# make install | demo | test | check | wheel. Each builds .venv from the package index first, if it is not there.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUTPUT ?= outputs/demo
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test check format wheel clean

help:
	@echo "make install   build $(VENV) with everything in it (about 8 GB: torch with CUDA)"
	@echo "make demo      make a scene, train, compress, measure; the report is $(OUTPUT)/report.html"
	@echo "make test      run the tests (PYTEST_ARGS='-m \"not slow\"' for the quick ones)"
	@echo "make check     lint, format and types"
	@echo "make wheel     build dist/*.whl"

install: $(STAMP)

# An interpreter counts when it runs: shims of version managers exist without the version behind them.
$(STAMP): pyproject.toml
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
		for candidate in $(PYTHON) python3.11 python3.12 python3.10 python3; do \
			if $$candidate -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
			then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "No Python 3.10, 3.11 or 3.12 found: install one, or name it with make PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Building $(VENV) with $$python: this downloads about 3 GB and takes a few minutes"; \
		$$python -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@$(BIN)/radcomp info
	@touch $@

demo: $(STAMP)
	$(BIN)/radcomp demo --output-dir $(OUTPUT) --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
