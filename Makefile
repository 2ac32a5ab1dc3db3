# Everything runs in .venv; nothing is needed but Python >= 3.11, make and a C library.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Several test processes share the cores: one thread each.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo test test-all lint docs clean

demo: $(VENV)/.installed
	$(BIN)/linnaeus train digits --recipe digits

test: $(VENV)/.installed
	$(TEST) -m "not long"

test-all: $(VENV)/.installed
	$(TEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# torch comes first and pinned: left to a dependency's range it would be several GB of CUDA.
# torchvision is a reference for the tests and no dependency; beside a CPU torch only --no-deps installs it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision==0.28.0
	@touch $@

clean:
	rm -rf $(VENV) runs site build dist .pytest_cache .mypy_cache .ruff_cache
