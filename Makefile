# Everything is installed into .venv in this checkout. PYTHON, TORCH and PORT may be set from outside.
PYTHON ?= python3
TORCH ?= torch==2.13.*
PORT ?= 8000
BIN := .venv/bin

.PHONY: run test check bench clean

run: .venv/.run-ready
	$(BIN)/python -m examples.quickstart.run --port $(PORT)

test: .venv/.dev-ready
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

check: .venv/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev-ready
	$(BIN)/python -m bench.run

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and alone: a plain `torch` from another package's requirements may pull a build of several gigabytes.
.venv/.torch-ready: | .venv/bin/python
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

.venv/.run-ready: pyproject.toml | .venv/.torch-ready
	$(BIN)/pip install --quiet --editable ".[serve,train,embedded]"
	touch $@

.venv/.dev-ready: pyproject.toml | .venv/.torch-ready
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/.run-ready

clean:
	rm -rf .venv .branchline
