# Everything sets itself up: `make demo` and `make test` need Python ≥ 3.11, git and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# A file to a process, as tests of one file share what takes long to make; in the order of tests/conftest.py.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint clean

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ropepatch needs Python 3.11 or newer; found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[train,eval,dev]" -c constraints.txt
	@touch $@

demo: .venv/installed
	$(BIN)/ropepatch demo

# One worker and one thread for each core: torch's own threads only get in each other's way.
test: .venv/installed
	$(PYTEST)

# Unit tests, and one model of each mechanism in the contracts.
test-fast: .venv/installed
	$(PYTEST) -m "not thorough"

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv out
