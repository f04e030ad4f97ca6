# The verbs of this repository; CONTRIBUTING.md explains them. Every verb works on a fresh machine.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CLIENTS := .venv-clients
NODE   := tests/clients/node
# One thread a test process: the tests are many small ones.
TEST   := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest

.PHONY: help serve test test-all drills soak clients check format goals gpu-check train clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?/\1\t/' | expand -t 14

serve: $(VENV)/.serve-ready   ## install if needed, then serve the bundled model on 127.0.0.1:8000 (ARGS="--port 8001")
	@$(BIN)/octavo serve $(ARGS)

test: $(VENV)/.test-ready     ## the fast tests (minutes)
	$(TEST) -q $(ARGS)

test-all: $(VENV)/.test-ready clients  ## every test, slow ones too
	$(TEST) -q -m 'slow or not slow' $(ARGS)

drills: $(VENV)/.serve-ready  ## crashes, freezes, overload ... of a real daemon, each a pass or not (ARGS="crash freeze")
	$(BIN)/python -m octavo.loadtest.drills $(ARGS)

soak: $(VENV)/.serve-ready    ## half an hour of traffic, a fifth of it hostile (ARGS="--minutes 5")
	$(BIN)/python -m octavo.loadtest.drills soak $(ARGS)

clients: $(CLIENTS)/.ready $(NODE)/node_modules/.package-lock.json  ## the clients that tests/clients drives a server with

check: $(VENV)/.test-ready    ## formatting, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test-ready   ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

goals: $(VENV)/.serve-ready   ## measure octavo against its goals and peers (ARGS="--llama-server ... --vllm-python ...", loadtest/peers.md)
	$(BIN)/python tools/host_path.py --json .bench/host-path.json
	$(BIN)/octavo bench goals --host-path .bench/host-path.json --json loadtest/results/goals.json --html .bench/goals.html --svg loadtest/results/goals.svg $(ARGS)

gpu-check: $(VENV)/.test-ready  ## on a GPU host: is every kernel right, how fast is it all (BLOCK=kernels|steps|bench|server)
	$(BIN)/python -m tools.gpu_check $(addprefix --block ,$(BLOCK)) $(ARGS)

train: $(VENV)/.test-ready    ## train the bundled model pair (hours; resumes where it stopped)
	$(BIN)/python tools/train_bundled.py $(ARGS)

clean:           ## remove caches and builds, keep the environment
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An editable install again only when the declaration changed.
$(VENV)/.serve-ready: pyproject.toml | $(VENV)/bin/python
	@echo "octavo: installing into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -e .
	@touch $@

$(VENV)/.test-ready: pyproject.toml | $(VENV)/bin/python
	@echo "octavo: installing into $(VENV), with what the tests need (once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -e '.[dev,test]'
	@touch $@ $(VENV)/.serve-ready

PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))

# The clients' own environment finds after its own packages those of the tests: some clients ask
# for torch, and one torch on the disk is enough.
$(CLIENTS)/.ready: pyproject.toml | $(VENV)/.test-ready
	@echo "octavo: installing the clients of tests/clients into $(CLIENTS) (once; about 1 GB)"
	$(BIN)/python -m venv $(CLIENTS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(CLIENTS)/bin/python -c '$(PURELIB)')/after.pth"
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(CLIENTS)/bin/python -m pip install --quiet --progress-bar on --group clients
	@touch $@

# Without node there is nothing to install, and its tests say so.
$(NODE)/node_modules/.package-lock.json: $(NODE)/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix $(NODE) --no-audit --no-fund --silent; fi
