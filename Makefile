# Everything works from a fresh clone with nothing but Python >= 3.11:
#   make demo    make test    make help
# Overridable: PYTHON (which interpreter), VENV (where the environment lives), ARGS (passed on).

VENV ?= .venv
ARGS ?=
CONSTRAINTS ?= constraints.txt
EXTRAS ?= cli,dev,plot
BIN := $(VENV)/bin
READY := $(VENV)/.vtfast-ready
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
MODEL_TESTS := tests/test_oracle.py tests/test_patch_*.py tests/test_image_keys.py \
    tests/test_host_reads.py tests/test_processors.py tests/test_toy.py tests/test_toy_qwen.py \
    tests/test_information_score.py tests/test_information_horizon.py tests/test_information_sweep.py
# A file is run by one worker, so that its models are built once. ARGS="-n 0" runs without workers.
WORKERS := -n logical --maxprocesses 8 --dist loadfile
OLDEST := build/constraints-oldest.txt

.PHONY: help setup demo test test-oldest lint bench evidence toy clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create the environment and install vtfast into it (the others do it too)

demo: $(READY) ## the bundled tiny LLaVA answers questions about a picture, full and pruned
	@$(BIN)/vtfast demo $(ARGS)

test: lint ## lint, types, and every test that needs no GPU
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-oldest: $(OLDEST) ## the model tests on the oldest transformers supported, in $(VENV)-oldest
	@$(MAKE) --no-print-directory setup VENV=$(VENV)-oldest CONSTRAINTS=$(OLDEST) EXTRAS=dev
	$(VENV)-oldest/bin/pytest $(MODEL_TESTS) $(WORKERS) $(ARGS)

$(OLDEST): constraints.txt constraints-oldest.txt
	@mkdir -p build
	@sed 's/==.*//; /^#/d; s/.*/^&==/' constraints-oldest.txt > $@.names
	@grep -v -f $@.names constraints.txt | cat - constraints-oldest.txt > $@
	@rm $@.names

lint: $(READY) ## ruff (rules, formatting) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## time the selection loop on this machine
	$(BIN)/python bench/bench_diversity.py $(ARGS)

evidence: $(READY) ## measure the paper's claims on the bundled models (20 minutes on 2 cores)
	$(BIN)/python bench/bench_information.py
	$(BIN)/python bench/evidence.py $(ARGS)

toy: $(READY) ## train the bundled LLaVA again, into build/toy/llava (about 25 minutes on 2 cores)
	$(BIN)/python -m vtfast.toy.train --family llava --out build/toy/llava $(ARGS)

clean: ## remove what building, testing and linting leave behind (keeps the environment)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find kernels vtfast tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once: a second call finds the stamp newer than what it was made from.
# setuptools comes first and builds without isolation, so the pinned version is the one used.
$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    for python in $(PYTHONS); do \
	        $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	            && found=$$python && break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "vtfast needs Python 3.11 or newer with the venv module; tried: $(PYTHONS)." >&2; \
	        echo "Install one (Debian, Ubuntu: apt install python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "Creating $(VENV) with $$($$found --version)"; \
	    $$found -m venv "$(VENV)"; \
	fi
	$(PIP) install -c $(CONSTRAINTS) "setuptools>=77"
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@
