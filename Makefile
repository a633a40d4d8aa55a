# make demo: from nothing to a scored model. make test: lint, types and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint
.DELETE_ON_ERROR:

# Interrupted at any step, it goes on when it is called again; finished, it does nothing again.
demo: $(READY)
	@echo "demo: draw ultrasound phantoms, encode them once, train, score, make a page"
	@echo "demo: what is finished below results/ is reused"
	$(BIN)/snakemake --cores all --rerun-incomplete --nolock --quiet rules host reason -- all
	@cat logs/phantoms/report.log

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile pipeline/rules lmm/study/Snakefile
	$(BIN)/snakemake --lint

# Exact pins; torch comes first because its CPU wheel is found only when it is asked for by version.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[workflow,dev]'
	@touch $@
