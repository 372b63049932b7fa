# Every target sets itself up: it makes its virtual environment and installs what it needs there, once. All that is
# needed beforehand is Python 3.10 or later, a C compiler and make.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# Here a C backend that cannot be built is an error. FASTLSTM_REQUIRE_C=0: go on without it, as users' installations do.
export FASTLSTM_REQUIRE_C ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# setuptools' general remark on editable installations: ten lines of noise.
export PYTHONWARNINGS := ignore:Editable installation

# The first of these that runs and is recent enough. PYTHON=... chooses another.
PYTHONS := python3.13 python3.12 python3.11 python3.10 python3
# torch's pinned version has CPU builds for fewer Pythons than we support. PEERS_PYTHON=... chooses another.
PEERS_PYTHONS := python3.11 $(PYTHONS)

VENV := .venv
VENV_PEERS := .venv-peers

# $(call find_python,candidates): the first that is Python 3.10 or later and can make virtual environments. (It has to
# run: there may be a command that does not work.)
find_python = $(shell for p in $(1); do \
    "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    && { echo "$$p"; break; }; done)

# $(call make_venv,folder,python chosen,variable that chooses)
define make_venv
@[ -n "$(2)" ] || { echo "No Python 3.10 or later was found (with its venv module: on Debian and Ubuntu the package" \
    "python3-venv). Install one, or name it: make $(3)=/path/to/python3" >&2; exit 1; }
"$(2)" -m venv --clear $(1)
$(1)/bin/python -m pip install --quiet --upgrade pip
endef

# What the installed extension and the package's metadata are made from. A change of Python files alone needs no new
# installation: it is an editable one.
BUILT_FROM := setup.py pyproject.toml $(wildcard csrc/*.c csrc/*.h csrc/*.py)

PYTEST := -m pytest -q tests

## help: this list
.PHONY: help
help:
	@sed -n 's/^## /make /p' Makefile

## demo: train a small character model on Shakespeare for about a minute, write some text, compare the backends
.PHONY: demo
demo: $(VENV)/installed
	mkdir -p build/demo
	cd build/demo && ../../$(VENV)/bin/fastlstm demo
	@echo "Its files are in build/demo."

## test: run the tests
.PHONY: test
test: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST)

## test-peers: run the tests with PyTorch, ONNX Runtime and Keras installed, and so compared with
.PHONY: test-peers
test-peers: $(VENV_PEERS)/installed
	$(VENV_PEERS)/bin/python $(PYTEST)

## check: lint, types and format, of Python and C
.PHONY: check
check: $(VENV)/tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

## format: put Python and C files into the format that `make check` asks for
.PHONY: format
format: $(VENV)/tools
	$(VENV)/bin/ruff check --fix --exit-zero --quiet .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

C_FILES = $(wildcard csrc/*.c csrc/*.h tests/c/*.c)

## test-pool: stress the thread pool, plainly (with futex and without) and under the sanitizers; half a minute
.PHONY: test-pool
test-pool: $(addprefix build/pool/,futex condition address thread)
	build/pool/futex
	build/pool/condition
	build/pool/address
	TSAN_OPTIONS=halt_on_error=1 build/pool/thread
	build/pool/futex time

build/pool/condition: POOL_FLAGS := -DFL_POOL_NO_FUTEX
build/pool/address: POOL_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all
build/pool/thread: POOL_FLAGS := -fsanitize=thread
build/pool/%: csrc/pool.c csrc/pool.h tests/c/test_pool.c
	@mkdir -p build/pool
	$(CC) -std=gnu11 -O2 -g -Wall -Wextra -Werror -Icsrc -pthread $(POOL_FLAGS) -o $@ csrc/pool.c tests/c/test_pool.c

## clean: remove everything that was made here, the virtual environments too
.PHONY: clean
clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV_PEERS) .pytest_cache .benchmarks .mypy_cache .ruff_cache
	rm -f fastlstm/*.so fastlstm/_build_failed.txt
	find fastlstm tests csrc -name __pycache__ -prune -exec rm -rf {} +

# ---- virtual environments: a stamp for each says what was made and installed last ----

$(VENV)/made:
	$(call make_venv,$(VENV),$(or $(PYTHON),$(call find_python,$(PYTHONS))),PYTHON)
	@touch $@

$(VENV)/installed: $(VENV)/made $(BUILT_FROM)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,plot]'
	@touch $@

$(VENV_PEERS)/made:
	$(call make_venv,$(VENV_PEERS),$(or $(PEERS_PYTHON),$(PYTHON),$(call find_python,$(PEERS_PYTHONS))),PEERS_PYTHON)
	@touch $@

$(VENV_PEERS)/installed: $(VENV_PEERS)/made $(BUILT_FROM)
	@$(VENV_PEERS)/bin/python -m pip install --quiet --editable '.[test,plot,peers]' || { echo \
	    "The peers could not be installed for $$($(VENV_PEERS)/bin/python --version): see above. If one of them has no" \
	    "build for it, name another Python: make clean; make test-peers PEERS_PYTHON=python3.11" >&2; exit 1; }
	@touch $@

# Tools that have nothing to do with the package itself; mypy, though, reads the types of what it imports.
$(VENV)/tools: $(VENV)/installed pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --group dev
	@touch $@
