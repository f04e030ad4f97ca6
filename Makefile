# The verbs of this repository; CONTRIBUTING.md explains them. Every verb works on a fresh machine.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One thread a test process: the tests are many small ones.
TEST   := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest

.PHONY: help serve test test-all check format train clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?/\1\t/' | expand -t 14

serve: $(VENV)/.serve-ready   ## install if needed, then serve the bundled model on 127.0.0.1:8000 (ARGS="--port 8001")
	@$(BIN)/octavo serve $(ARGS)

test: $(VENV)/.test-ready     ## the fast tests (minutes)
	$(TEST) -q $(ARGS)

test-all: $(VENV)/.test-ready ## every test, slow ones too
	$(TEST) -q -m 'slow or not slow' $(ARGS)

check: $(VENV)/.test-ready    ## formatting, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test-ready   ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

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
