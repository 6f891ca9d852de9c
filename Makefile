# make demo: the main job on the embedded data.  make test: lint, words, types, imports, tests.  make docs: the site.
# On Linux, give pip the CPU index of PyTorch, or it takes a CUDA build:
#   make demo PIP_ARGS="--extra-index-url URL"        (URL: see pytorch.org/get-started, Compute Platform "CPU")

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.ready-tools
# A process for each core, files in the order of tests/conftest.py.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

# Everything a tool caches stays in the clone; threads that wait do not spin.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test types unit docs soak bench clean

setup: $(READY)

# torchrec's metadata asks for the CUDA build of fbgemm, so it goes in without its dependencies.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[cpu]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps torchrec==1.8.0
	touch $@

# What tests, documentation and benchmarks need besides.
$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[cpu,dev]'
	touch $@

demo: setup
	rm -rf runs/quickstart
	$(BIN)/exfm run examples/quickstart.yaml

# Types are checked beside the tests: mypy takes long, and computes on one core.
test: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.words
	$(MAKE) --jobs 2 --output-sync=none types unit

types:
	$(BIN)/mypy

unit:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

# The documentation as a site, in site/: open site/index.html, or `python -m http.server -d site` for its search.
docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: site/index.html"

# Campaigns too long for every change; docs/core/soak.md keeps their results.
soak: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) -m "soak or hypothesis" --hypothesis-profile soak
	$(BIN)/python benchmarks/soak_kill.py
	$(BIN)/python benchmarks/soak_jobs.py
	$(BIN)/python benchmarks/soak_parallel.py

# All ratios, those that miss their goal too. Speed beside other libraries needs benchmarks/speed/setup.sh first.
# Threads wait here as torch lets them where nothing else is set.
BENCH := env -u OMP_WAIT_POLICY $(BIN)/python

bench: $(TOOLS)
	-test ! -x .venv-peers/bin/python || $(BENCH) benchmarks/speed/bench.py
	-$(BENCH) benchmarks/speed/overhead.py
	-$(BENCH) benchmarks/memory.py
	-$(BENCH) benchmarks/supervision_store.py
	-$(BENCH) benchmarks/export.py
	$(BENCH) benchmarks/speed/startup.py examples/quickstart.yaml

clean:
	rm -rf $(VENV) runs site
