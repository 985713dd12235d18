# Every target makes .venv itself; a second run installs nothing. PYTHON=python3.12 chooses another interpreter, JOBS=1 tests in one process.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SETTINGS := pyproject.toml entry_points.txt constraints.txt
EXAMPLES := matminer_ed3d/data/examples
# One thread per process: the tests run side by side, and idle OpenMP threads must not spin.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: demo test lint docs examples benchmark clean

demo: .venv/.installed
	$(BIN)/ed3d predict $(EXAMPLES)/Fe_bcc_CHGCAR.gz $(EXAMPLES)/TiO2_rutile.cif

test: .venv/.installed-test
	$(QUIET) $(BIN)/python -m pytest --numprocesses $(JOBS)

lint: .venv/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

docs: .venv/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html

examples: .venv/.installed
	set -e; for script in examples/*.py; do echo "== $$script"; $(QUIET) $(BIN)/python $$script; done

# make benchmark STRUCTURES=some.parquet, with the columns id, lattice, numbers, frac, n_sites
benchmark: .venv/.installed
	$(if $(STRUCTURES),,$(error say which table: make benchmark STRUCTURES=some.parquet))
	$(BIN)/python benchmarks/sparse_tensors.py $(STRUCTURES)

clean:
	rm -rf .venv build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: $(SETTINGS) | $(BIN)/python
	$(PIP) --editable .
	touch $@

# The extras: .venv/.installed-test, .venv/.installed-lint, .venv/.installed-docs.
.venv/.installed-%: .venv/.installed
	$(PIP) --editable ".[$*]"
	touch $@
