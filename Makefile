# Every target is a line or two that a person could type.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that really starts and is new enough; override with PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
DATA ?=
ONCE ?=
ONLY ?=
SECONDS_OF_EPOCH ?=

.PHONY: help install check test chaos demo pictures verify-deploy bench bench-state bench-training bench-full-size docs format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 16

install: $(STAMP)  ## make .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt setup.py service/_ranking.cpp model_store/_head.cpp $(wildcard model_store/*.hpp)
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: make PYTHON=/path/to/python3.11 install"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "installing into .venv (torch and ONNX Runtime are large: a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[service,otel,training,demo,dev]'
	@touch $@

check: $(STAMP)  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p model_store -p service -p training
	PYTHONPATH=. $(BIN)/lint-imports

test: $(STAMP)  ## the whole test suite, no GPU and no network needed
	$(BIN)/python -m pytest

chaos: $(STAMP)  ## kill, cut, stall and fill Redis and the service under load
	$(BIN)/python -m pytest -m chaos -s tests/chaos

demo: $(STAMP)  ## train, publish, serve and report; DATA=DIR takes your log, ONCE=1 ends after the report
	@$(BIN)/python deploy/demo.py --data "$(or $(DATA),none)" $(if $(ONCE),--once)

pictures: $(STAMP)  ## take the pictures of the consoles for docs/images; five minutes
	PICTURES=docs/images $(BIN)/python -m pytest tests/service/test_dashboards.py

verify-deploy:  ## build the images, run the compose project and check it; docker or podman
	deploy/verify.sh

bench: $(STAMP)  ## speed of the service beside its floor and its peers; ONLY=head,http,peers,events,memory,gpu
	$(BIN)/python -m benchmarks.serving $(if $(ONLY),--only $(ONLY))

bench-state: $(STAMP)  ## memory and speed of the store, into benchmarks/results
	$(BIN)/python -m benchmarks.state

bench-training: $(STAMP)  ## training and evaluation speed beside a per-row implementation
	$(BIN)/python -m benchmarks.training

bench-full-size: $(STAMP)  ## reading and training a log of MicroVideo-1.7M's size: time and memory
	$(BIN)/python -m benchmarks.full_size $(if $(SECONDS_OF_EPOCH),--seconds $(SECONDS_OF_EPOCH))

docs: $(STAMP)  ## write docs/configuration.md anew from the settings
	$(BIN)/python -m service settings --page > docs/configuration.md

format: $(STAMP)  ## rewrite the code in the house format
	$(BIN)/ruff check --fix-only --exit-zero . && $(BIN)/ruff format .

clean:  ## remove caches and run-time files, keep .venv
	rm -rf var build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
