# Everything the project needs, it installs itself: Python packages into .venv, Chromium on request.
.PHONY: demo test test-all check format browser wheels clean
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.venv/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable ".[app,train]"
	touch $@

.venv/.dev: .venv/.demo
	$(INSTALL) --editable ".[app,train,surveys,dev]"
	touch $@

demo: .venv/.demo  ## simulated sky -> encoder -> index -> web page
	$(BIN)/skykin demo

# Tests go file by file to one process a core, so each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: .venv/.dev  ## the tests that take minutes, not hours
	$(PYTEST) -m "not slow"

test-all: .venv/.dev  ## all of them, with other random numbers in every run
	$(PYTEST) --fresh-seeds

check: .venv/.dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

browser:  ## Debian's Chromium, for the browser tests (needs root)
	command -v chromium >/dev/null || (apt-get update && apt-get install --yes --no-install-recommends chromium)

wheels: .venv/.demo  ## what training needs beside torch and numpy, for a machine without network
	rm -rf build/wheels
	$(BIN)/python -m pip download --quiet --constraint constraints.txt --no-deps \
		--dest build/wheels --requirement training/offline-requirements.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
