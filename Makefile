# Every target sets up what it needs: on a fresh clone `make demo` and `make test` start from nothing but python3.
#   PYTHON=python3.12 make install    another interpreter (3.11 or newer)
#   PYTEST_ARGS="-k lattice" make test    a part of the tests
#   WORKERS=8 make test                   in so many processes, of one thread each
# pip's own settings (PIP_INDEX_URL and the like) apply, for example for a mirror.

SHELL := /bin/bash
PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tests of a file share a process, and so do those of a cluster (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help demo sweep-demo test test-slow test-all test-gpu lint install clean

help:
	@echo "make demo     train CoSA on a generated data set on the CPU, evaluate it, print the leaderboard"
	@echo "make sweep-demo   a small threshold search on the same data, with table and page"
	@echo "make test     the fast tests                     make lint     ruff and mypy"
	@echo "make test-slow   the rest of .ci/run's tests     make test-all all tests, nightly ones too (CONTRIBUTING.md)"
	@echo "make test-gpu the tests of a GPU: one CUDA device, neither Ray nor MLflow (docs/gpu.md)"
	@echo "make install  only the environment, in .venv     make clean    remove .venv and every cache"

demo: $(STAMP)
	@$(PY) jobs/demo.py

sweep-demo: $(STAMP)
	@$(PY) jobs/demo.py --data-only
	@$(PY) sweeps/run.py --space demo --recipe demo --trials 5 --warm-start --data.shards outputs/demo/shards \
		--training.steps 800 --evaluation.every 100 --evaluation.scales '[1.0]' --evaluation.pictures 0

test: $(STAMP)
	@$(PYTEST) -m "not slow and not nightly and not gpu" $(PYTEST_ARGS)

test-slow: $(STAMP)
	@$(PYTEST) -m "slow and not nightly and not gpu" $(PYTEST_ARGS)

test-all: $(STAMP)
	@$(PYTEST) $(PYTEST_ARGS)

test-gpu: $(STAMP)
	@$(PY) -m pytest -n 0 -m gpu tests/gpu $(PYTEST_ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

install: $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' on the PATH: install Python 3.11 or newer, or name one: PYTHON=/path/to/python3 make ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name another one: PYTHON=/path/to/python3.11 make ..." >&2; exit 1; }
	@test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "make: '$(PYTHON) -m venv' failed: on Debian and Ubuntu, install the package python3-venv" >&2; exit 1; }
	@echo "Installing the environment into $(VENV): a few minutes and about 7 GB with a CUDA build of torch (pip's words: $(VENV)/install.log)"
	@start=$$SECONDS; \
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --progress-bar off --no-input -e '.[dev]' -c constraints.txt >$(VENV)/install.log 2>&1 \
		|| { grep -v "it is neither a file nor a directory" $(VENV)/install.log | tail -n 20 >&2; echo "make: the installation failed (all of pip's words: $(VENV)/install.log)" >&2; exit 1; }; \
	echo "Installed in $$((SECONDS - start)) s: $$(du -sh $(VENV) | cut -f1), Python $$($(PY) -c 'import platform; print(platform.python_version())')"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -path ./outputs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
