# Everything a newcomer needs. Each target sets up its own virtual environment when there is none, and again when
# pyproject.toml or a constraints file has changed; nothing is installed by hand.
#
#   make demo                   the whole story, in under two minutes
#   make test  [ARGS="-k name"] the whole suite, real PostgreSQL included
#   make check                  ruff, mypy --strict, import contracts
#   make bench [ARGS="--json"]  side by side with the peers; OF=durable: only that one
#   make torture [ROUNDS=1000]  random kills, many rounds

PYTHON ?= python3
ROUNDS ?= 1000
OF ?= durable idempotency lifecycle sessions
ARGS ?=

VENV := .venv/bin
BENCH := .venv-bench/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# What somebody's shell says about Python is not about these environments.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench torture clean

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/.ready
	@$(VENV)/holdfast demo $(ARGS)

test: .venv/.ready
	@$(VENV)/python -m pytest $(ARGS)

check: .venv/.ready
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports

bench: .venv-bench/.ready
	@set -e; for each in $(OF); do $(BENCH)/python bench/$$each.py $(ARGS); done

torture: .venv/.ready
	@HOLDFAST_TORTURE_ROUNDS=$(ROUNDS) $(VENV)/python -m pytest -m torture --timeout=0 $(ARGS)

clean:
	rm -rf .venv .venv-bench

.venv/.ready: pyproject.toml constraints.txt
	$(call environment,.venv)
	@echo "pip install -c constraints.txt -e .[all,dev]  (into .venv, once)"
	@.venv/bin/python -m pip install -qq -c constraints.txt -e '.[all,dev]'
	@touch $@

.venv-bench/.ready: pyproject.toml bench/requirements.txt bench/constraints.txt
	$(call environment,.venv-bench)
	@echo "pip install -c bench/constraints.txt -r bench/requirements.txt -e .[all]  (into .venv-bench, once)"
	@.venv-bench/bin/python -m pip install -qq -c bench/constraints.txt -r bench/requirements.txt -e '.[all]'
	@touch $@

# environment(folder): an environment whose pip works, made with the first Python that is new enough. One that an
# interrupted run left half made, or whose Python has gone, is made anew.
define environment
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
    for python in $(PYTHON) python3.13 python3.12 python3.11 python3.14; do \
        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
            echo "$$python -m venv $(1)"; \
            exec $$python -m venv --clear $(1); \
        fi; \
    done; \
    echo "Holdfast needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
endef
