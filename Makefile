# Everything runs in its own virtual environment; the targets below create it on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
ARGS   ?=
OUT    ?= demo
DOCS   ?= docs/_build/html
DIST   ?= dist

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint format types docs tutorials build clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per dependency group: a changed pyproject.toml or constraints.txt installs again. pip 25.1 is the first that
# knows dependency groups.
$(BIN)/python:
	@echo "Creating the environment $(VENV)"
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing scfm and what its tests need into $(VENV); the first time that takes minutes, mostly for torch"
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install -e . --group test -c constraints.txt
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing scfm and what its development needs into $(VENV); the first time that takes minutes, mostly for torch"
	$(PIP) install --upgrade "pip>=25.1"
	$(PIP) install -e . --group dev -c constraints.txt
	@touch $@ $(VENV)/.test-installed

demo: $(VENV)/.test-installed  ## embed 700 real cells with the bundled model, into demo/
	$(BIN)/python tutorials/demo.py $(OUT)

test: $(VENV)/.test-installed  ## run the tests (ARGS="-k name" to choose)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

coverage: $(VENV)/.test-installed  ## run the tests and report the lines they miss
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(VENV)/.dev-installed  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed  ## fix style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev-installed  ## check types
	$(BIN)/mypy

docs: $(VENV)/.dev-installed  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -d $(DOCS)/.doctrees -b html docs $(DOCS)

tutorials: $(VENV)/.dev-installed  ## execute the tutorials again, in place
	$(BIN)/jupyter execute --inplace tutorials/*.ipynb

build: $(VENV)/.dev-installed  ## build wheel and sdist into dist/
	$(BIN)/python -m build --outdir $(DIST)

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) $(OUT) $(DOCS) $(DIST) docs/generated docs/tutorials .mypy_cache .pytest_cache .ruff_cache .coverage
