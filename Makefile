# make train    environment, build, census data through Spark, then private training on 8 ranks
# make test     environment, build, every test (but the long ones of pytest -m slow)
# make check    formatting, lint, types
# make stubs    the types of the compiled core, after a change of bindings/
# make clean    removes what the build made; the environment and the data stay

PYTHON ?= python3
RANKS ?= 8
VENV := .venv
RUN := . $(VENV)/bin/activate &&

# The release that dpcomm is tested with; the package itself takes older and newer ones.
TORCH := torch==2.13.0

.PHONY: train test check stubs build prerequisites clean

# Training again spends ε again: only once the summary is gone.
train: build runs/census/summary.json
	@echo "trained: see runs/census/summary.json; to train again: rm runs/census/summary.json"

runs/census/summary.json: | build data/census/_SUCCESS
	$(RUN) mpirun -np $(RANKS) python -m dpcomm.train

test: build
	$(RUN) python -m pytest

check: $(VENV)/.ready
	$(RUN) ruff check . && ruff format --check .
	$(RUN) clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh')
	$(RUN) mypy

stubs: build
	$(RUN) python tests/test_stubs.py

# A second build compiles only what changed.
build: $(VENV)/.ready
	@$(RUN) python setup.py --quiet build_ext --inplace

data/census/_SUCCESS: | build
	$(RUN) python -m dpcomm.data.census data/raw/census && \
	  python -m dpcomm.data.prepare data/raw/census data/census --schema census

# The MPI comes before dpcomm, whose build looks for its headers.
$(VENV)/.ready: pyproject.toml | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet $(TORCH) 'setuptools>=77' cmake ninja pybind11 mpich mpi4py
	$(RUN) pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

# need WHAT PACKAGES COMMAND…: one line that names what is missing and the command that mends it.
prerequisites:
	@need() { \
	  what=$$1; packages=$$2; shift 2; \
	  "$$@" >/dev/null 2>&1 || \
	    { echo "dpcomm: $$what: apt-get install $$packages" >&2; exit 1; }; \
	}; \
	need "Python 3.10 or newer is missing" "python3 python3-venv" \
	  $(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10)'; \
	need "Python cannot make environments" python3-venv $(PYTHON) -c 'import ensurepip, venv'; \
	need "Python.h is missing" python3-dev $(PYTHON) -c \
	  'import sysconfig; open(sysconfig.get_path("include") + "/Python.h")'; \
	need "the compiler g++ is missing" g++ g++ --version; \
	need "git is missing" git git --version

clean:
	rm -rf build dpcomm/*.so
