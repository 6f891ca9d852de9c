# make demo: the main job on the embedded data.  make test: lint, words, types, imports, tests.  make docs: the site.
# On Linux, give pip the CPU index of PyTorch, or it takes a CUDA build:
#   make demo PIP_ARGS="--extra-index-url URL"        (URL: see pytorch.org/get-started, Compute Platform "CPU")

PYTHON ?= python3
PIP_ARGS ?=
# Releases that fit together: see core/exfm/cli/stacks.py.
TORCH := 2.13.0
FBGEMM := 1.8.0
TORCHREC := 1.8.0
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
# Each module is compiled once, when it is first imported, and not once in every process that a test starts. Most modules
# of what is installed are never imported: pip compiles none.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS)

.PHONY: setup demo test types unit test-stack test-matrix docs soak bench clean

setup: $(READY)

# torchrec's metadata asks for the CUDA build of fbgemm, so it goes in without its dependencies.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch==$(TORCH)
	$(PIP) fbgemm-gpu-cpu==$(FBGEMM) --editable '.[cpu]'
	$(PIP) --no-deps torchrec==$(TORCHREC)
	touch $@

# What tests, documentation and benchmarks need besides.
$(TOOLS): $(READY)
	$(PIP) --editable '.[cpu,dev]'
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

# Scripts of a folder import each other by their names, and some names are in two folders: a run of mypy for each.
SCRIPTS := benchmarks benchmarks/gpu benchmarks/quality benchmarks/quality/fuxictr benchmarks/scaling benchmarks/speed \
	benchmarks/transfer docs/generate examples/strategies
DISTRIBUTIONS := exfm-plugin-jsonl exfm-plugin-rankmixer

types:
	$(BIN)/mypy
	set -e; for folder in $(SCRIPTS); do \
		MYPYPATH=benchmarks/quality:benchmarks/speed $(BIN)/mypy $$folder/*.py; \
	done
	set -e; for name in $(DISTRIBUTIONS); do MYPYPATH=examples/$$name $(BIN)/mypy examples/$$name; done

# Temporary files lie in memory where there is plenty, because small runs wait for the disk a fifth of their time: each
# file of a commit is synced (fsync). What torch compiles stays in the clone, for the next call.
MEMORY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8000000 {print "/dev/shm"}')

unit:
	folder=$$(mktemp -d "$(or $(MEMORY),$${TMPDIR:-/tmp})/exfm-tests.XXXXXX") && trap "rm -rf $$folder" EXIT && \
		TMPDIR=$$folder TORCHINDUCTOR_CACHE_DIR="$(CURDIR)/$(VENV)/inductor" OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(SPREAD)

# What depends most on torch, fbgemm and torchrec, and a short run, on one stack.
STACK_TESTS := tests/layers tests/modeling tests/plugins/test_din.py tests/plugins/test_single.py \
	tests/plugins/test_parallel_plans.py tests/serving/test_export.py

test-stack: $(TOOLS)
	$(BIN)/exfm doctor
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) $(STACK_TESTS)
	rm -rf runs/stack
	$(BIN)/exfm run examples/quickstart.yaml stream.source.days=2 run_dir=runs/stack

# The oldest and the newest stack that exfm supports, each in an environment of its own: gigabytes, and many minutes.
STACKS := from exfm.cli.stacks import STACKS; \
	print(*(f"VENV=.venv-stack-{s.torch} TORCH={s.torch} FBGEMM={s.fbgemm} TORCHREC={s.torchrec}" \
	for s in (STACKS[0], STACKS[-1])), sep="\n")

test-matrix:
	stacks=$$(PYTHONPATH=core $(PYTHON) -c '$(STACKS)') && echo "$$stacks" | while read -r stack; do \
		$(MAKE) test-stack $$stack < /dev/null || exit 1; \
	done

# The documentation as a site, in site/: open site/index.html, or `python -m http.server -d site` for its search.
docs: $(TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "docs: site/index.html"

# Campaigns too long for every change; docs/core/soak.md keeps their results.
soak: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) -m "soak or hypothesis" --hypothesis-profile soak
	$(BIN)/python benchmarks/soak_kill.py
	$(BIN)/python benchmarks/soak_jobs.py
	$(BIN)/python benchmarks/soak_files.py
	$(BIN)/python benchmarks/soak_parallel.py
	$(BIN)/python benchmarks/soak_memory.py

# All ratios, those that miss their goal too. Speed beside other libraries needs benchmarks/speed/setup.sh first.
# Threads wait here as torch lets them where nothing else is set.
BENCH := env -u OMP_WAIT_POLICY $(BIN)/python

bench: $(TOOLS)
	-test ! -x .venv-peers/bin/python || $(BENCH) benchmarks/speed/bench.py
	-$(BENCH) benchmarks/speed/overhead.py
	-$(BENCH) benchmarks/memory.py
	-$(BENCH) benchmarks/supervision_store.py
	-$(BENCH) benchmarks/commits.py
	-$(BENCH) benchmarks/deltas.py
	-$(BENCH) benchmarks/export.py
	$(BENCH) benchmarks/speed/startup.py examples/quickstart.yaml

clean:
	rm -rf $(VENV) .venv-stack-* runs site
