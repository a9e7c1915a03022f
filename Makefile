# One menu for people and CI. `make run` and `make test` do all their set-up on a fresh machine.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-quick lint format types structure js-test bench bench-quick bench-compare \
        bench-dashboard lock vendor clean system-deps

help:  ## this menu
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

run: $(VENV)/.run  ## start the server with the dashboard on http://127.0.0.1:8765 (ARGS="--port 9000")
	@$(BIN)/mux serve $(ARGS)

test: $(VENV)/.test system-deps lint types structure  ## everything that CI checks
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not browser" $(ARGS)
	$(BIN)/python -m pytest -m browser $(ARGS) $(if $(ARGS),|| test $$? = 5)

test-quick: $(VENV)/.test  ## the tests without browsers, real models and long runs
	$(BIN)/python -m pytest -m "not slow and not browser and not real_model" $(ARGS)

lint: $(VENV)/.test  ## ruff (lint and format) and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(VENV)/.test  ## put everything into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.test  ## mypy, strict
	$(BIN)/mypy mux tests
	@for file in agents/*.py; do [ ! -e "$$file" ] || $(BIN)/mypy "$$file" || exit 1; done

structure: $(VENV)/.test  ## data flows one way (import-linter)
	PYTHONPATH=. $(BIN)/lint-imports

js-test: $(VENV)/.test system-deps  ## the dashboard's unit tests and types
	$(BIN)/python -m pytest tests/e2e/test_javascript.py

bench: $(VENV)/.test .venv-bench/.made  ## the whole benchmark suite, each figure beside a peer or a floor
	$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(VENV)/.test .venv-bench/.made  ## the same in under three minutes
	$(BIN)/python -m tests.bench --quick $(ARGS)

bench-compare: $(VENV)/.test  ## the difference of two results: make bench-compare A=old.json B=new.json
	$(BIN)/python -m tests.bench.compare $(A) $(B)

bench-dashboard: $(VENV)/.test system-deps  ## the dashboard's gates in headless Chromium
	$(BIN)/python -m tests.bench.dashboard $(ARGS)

lock: $(VENV)/.test  ## compile tests/requirements.txt anew from pyproject.toml and tests/requirements.in
	$(BIN)/python tests/lock.py

vendor:  ## fetch the dashboard's libraries anew into static/vendor, at their pinned versions
	$(PYTHON) static/vendor/update.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

system-deps:
	@tests/system-deps

# The environment to run in: the package and what it needs, at the locked versions.
$(VENV)/.run: pyproject.toml tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Mux needs Python 3.11 or newer; choose one: make run PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	    || { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e . -c tests/requirements.txt
	@touch $@

# Other frameworks, to measure against: never in the environment that is measured.
.venv-bench/.made: tests/bench/requirements.txt
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check -r tests/bench/requirements.txt
	@touch $@

# What the tests need on top of it.
$(VENV)/.test: $(VENV)/.run tests/requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@
