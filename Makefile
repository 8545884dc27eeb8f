PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test test-slow

$(BIN)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

test: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

test-slow: $(BIN)/.dev
	$(BIN)/python -m pytest -m slow
