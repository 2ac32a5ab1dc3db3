# Everything runs in .venv, which needs only Python >= 3.11 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Several test processes share the cores: one thread each.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo test test-all test-gpu test-rounding test-faults check lint platforms matrix docs dist clean

demo: $(VENV)/.installed
	$(BIN)/linnaeus train digits --recipe digits

test: $(VENV)/.installed
	$(TEST) -m "not long"

test-all: $(VENV)/.installed
	$(TEST)

# On a machine with a GPU, which the other targets hide: the tests that need one, and all others on it. Those that fork are
# skipped.
test-gpu: $(VENV)/.installed
	LINNAEUS_TEST_GPU=1 $(TEST) -m "not long"

# The tests of training with the instructions of an older processor, which rounds differently. ISA=AVX2 is another one.
ISA ?= SSE41
test-rounding: $(VENV)/.installed
	ONEDNN_MAX_CPU_ISA=$(ISA) ATEN_CPU_CAPABILITY=default $(TEST) -m "not long" tests/training tests/models tests/sweeps

# A kill and three kinds of failure at every system call of everything that writes; takes about an hour, and needs strace.
test-faults: $(VENV)/.installed
	$(TEST) --every-fault -m long tests/training/test_faults.py

# The hooks of .pre-commit-config.yaml on all files; needs a git checkout and no network.
check: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files

# The same linters without git.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The types as Windows and macOS have them: finds functions that only POSIX has.
platforms: $(VENV)/.installed
	$(BIN)/mypy --platform win32 src
	$(BIN)/mypy --platform darwin src

# The quick tests on each of these Pythons, in environments of their own; RESOLUTION=lowest-direct takes the lowest versions.
PYTHONS ?= 3.11 3.12 3.13 3.14
RESOLUTION ?= highest
matrix:
	$(PYTHON) packaging/matrix.py $(PYTHONS) --resolution $(RESOLUTION)

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The wheel and the sdist, as a release uploads them. LINNAEUS_REPOSITORY=https://... makes the links of README absolute.
dist: $(VENV)/.installed
	$(BIN)/python -m hatchling build

# torch is installed first, with a pinned version: as a dependency with a range it would bring several GB of CUDA libraries.
# torchvision is a reference for the tests, and timm imports it; with a CPU build of torch both need --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision==0.28.0 timm==1.0.31
	@touch $@

clean:
	rm -rf $(VENV) runs site build dist .pytest_cache .mypy_cache .ruff_cache
