# Everything runs in .venv, made on first use. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install quickstart demo fix test slow-test check ci lint types docs benchmark clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("colbert-zero needs Python 3.11 or newer, $(PYTHON) is %d.%d; say which: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/colbert-zero run recipes/quickstart.yaml --out out/quickstart

# The quickstart's best model, an index of the installed packages' documentation, and a page to search in it.
demo: install
	$(BIN)/colbert-zero demo

# One process a core, up to eight. make test ARGS="-k order -x -n 0"
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --durations=5 $(ARGS)

slow-test: install
	$(BIN)/python -m pytest -m slow

# What to run before a commit; and what `.ci/run` runs, with whole runs of minutes each.
check: lint types test

ci: check slow-test

fix: install
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: install
	$(BIN)/mypy

# The reference's tables, from the fields' docstrings.
docs: install
	$(BIN)/python docs/generate.py

# All, or some: make benchmark ARGS="maxsim index --quick". It says first how long it takes.
benchmark: install
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) out .pytest_cache .hypothesis .mypy_cache .ruff_cache
