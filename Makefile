# Madang. `make up` and `make test` are all that anyone needs; both install what they use and may be repeated.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help up down status engines test test-deep check format bench bench-gateway bench-artifacts bench-facility lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UP_FLAGS ?=
BENCH_FLAGS ?=
PYTEST_FLAGS ?=

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.run: requirements/run.lock pyproject.toml scripts/make-venv
	@scripts/make-venv $(PYTHON) $(VENV) requirements/run.lock
	@touch $@

$(VENV)/.engines: requirements/engines.lock $(VENV)/.run
	@scripts/make-venv $(PYTHON) $(VENV) requirements/engines.lock
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@scripts/make-venv $(PYTHON) $(VENV) requirements/dev.lock
	@touch $@

up: $(VENV)/.run ## start the embedded federation: hub, three sites, a real model
	@$(BIN)/madang up $(UP_FLAGS)

down: ## stop it; nothing stays behind
	@if [ -x $(BIN)/madang ]; then $(BIN)/madang down $(UP_FLAGS); else echo "nothing to stop: $(VENV) does not exist"; fi

status: $(VENV)/.run ## say what runs
	@$(BIN)/madang status $(UP_FLAGS)

engines: $(VENV)/.engines ## what the examples run beside chat and search: models in ONNX, speech
	@command -v tesseract >/dev/null || echo "madang: for Korean print, as root: apt-get install tesseract-ocr tesseract-ocr-kor"

test: $(VENV)/.dev ## every test but the long ones, six to seven minutes on two cores
	@scripts/run-tests $(BIN)/python "not deep" $(PYTEST_FLAGS)

test-deep: $(VENV)/.dev ## the long suites, two hours: chaos at full length, deep properties, other people's devices
	@scripts/make-facility-peers $(PYTHON)
	@MADANG_HYPOTHESIS_PROFILE=deep scripts/run-tests $(BIN)/python "deep or not deep" --timeout 1800 $(PYTEST_FLAGS)

check: $(VENV)/.dev ## static checks: format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## rewrite the sources as ruff likes them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: bench-gateway bench-artifacts bench-facility ## every benchmark

bench-gateway: $(VENV)/.dev ## what the gateway costs, beside HAProxy, vllm-router and LiteLLM
	@scripts/make-bench-peers $(PYTHON)
	@$(BIN)/python -m bench.gateway --python "$$(scripts/make-bench-python $(BIN)/python)" $(BENCH_FLAGS)

bench-artifacts: $(VENV)/.dev ## how fast an artifact arrives over a cut link, beside curl + sha256sum + sync
	@$(BIN)/python -m bench.artifacts $(BENCH_FLAGS)

bench-facility: $(VENV)/.dev ## what polling equipment costs: SNMP and Modbus, then Redfish
	@$(BIN)/python -m bench.facility $(BENCH_FLAGS)
	@$(BIN)/python -m bench.facility_redfish

lock: ## resolve the dependencies anew; see CONTRIBUTING
	@scripts/lock $(PYTHON)

clean: down ## remove what was built and all state
	@rm -rf $(VENV) .madang .mypy_cache .ruff_cache .pytest_cache .hypothesis
