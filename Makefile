# `make demo` and `make test` are each the only command needed on a fresh machine with Python 3.11+.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Most of the suite's time is XLA's, compiling: tests of what float32 can do take the programs that
# users get, all others hardly optimized ones. None is split in parts that are compiled side by side,
# for there are two workers already. The longest come first, so that no worker waits.
PYTEST := -m pytest -n 2 --dist worksteal -q
UNSPLIT := --xla_cpu_parallel_codegen_split_count=1
HARDLY := --xla_backend_optimization_level=0 $(UNSPLIT)
COMPILE_FAST = $(HARDLY) $(shell $(TRY) 2>/dev/null && echo $(OLD_EMITTERS))
# XLA aborts at a flag that it does not know, and since jax 0.11 it does not know this one.
OLD_EMITTERS := --xla_cpu_use_fusion_emitters=false
TRY := JAX_PLATFORMS=cpu XLA_FLAGS=$(OLD_EMITTERS) $(BIN)/python -c 'import jax; jax.devices()'
tests = $(wildcard $(1:%=tests/*/test_%.py))
NUMBERS := $(call tests,numerics numerics_* scales fuzz)
LONG := $(call tests,study hosts faults modes)
OTHERS := $(filter-out $(NUMBERS) $(LONG),$(wildcard tests/test_*.py tests/*/test_*.py))
CORE := batch_norm batch_norm_* moments running norms linen linen_c* linen_transforms nnx nnx_* \
  errors errors_*

.PHONY: demo demo-devices ledger report notebooks docs linkcheck test test-fast test-newest build peers browser lint \
  format bench compiled clean
.DELETE_ON_ERROR:

demo: .venv/.experiments  ## Fig. 1 of the paper on MNIST, 10,000 steps and three seeds, about a minute
	$(BIN)/python -m experiments mnist_mlp --preset quick

demo-devices: .venv/.experiments  ## the same numbers from one device and from eight virtual ones
	$(BIN)/python -m experiments mnist_mlp --preset smoke
	$(BIN)/python -m experiments mnist_mlp --preset smoke --devices 8

ledger: .venv/.experiments  ## every claim measured: 122 minutes on two cores with other work beside; stopped, it goes on
	$(BIN)/python -m experiments all --preset quick --resume
	$(BIN)/python -m experiments report

report: .venv/.experiments  ## the ledger as pages, from your runs and else from ours
	$(BIN)/python -m experiments report

notebooks: .venv/.dev  ## each notebook from the script beside it, executed
	PYTHONPATH=. $(BIN)/python notebooks/build.py

# A warning is an error, and so is a name without a page. Nothing is fetched.
SPHINX := JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet

docs: .venv/.docs  ## the pages of docs/ as a site: docs/_build/html/index.html
	$(SPHINX) -b html docs docs/_build/html

linkcheck: .venv/.docs  ## links of the pages to elsewhere, over the network
	$(SPHINX) -b linkcheck docs docs/_build/linkcheck

# Two workers have the cores already: threads of NumPy's and torch's own would only wait for them.
test test-fast test-newest build: export OPENBLAS_NUM_THREADS := 1
test test-fast test-newest build: export OMP_NUM_THREADS := 1

test: .venv/.dev  ## the whole suite; what compares with a peer is skipped where it is not installed
	XLA_FLAGS="$(UNSPLIT)" $(BIN)/python $(PYTEST) $(NUMBERS)
	XLA_FLAGS="$(COMPILE_FAST)" $(BIN)/python $(PYTEST) $(LONG) $(OTHERS) jbn

test-fast: .venv/.dev  ## the core alone, its programs hardly optimized
	XLA_FLAGS="$(COMPILE_FAST)" $(BIN)/python $(PYTEST) $(call tests,$(CORE))

# In an environment of its own: nothing is there but what is installed here.
TEST_TOOLS := chex hypothesis pytest pytest-xdist

test-newest: .venv/.base  ## the core with the newest of all that it needs, without constraints.txt
	rm -rf .venv/newest
	$(PYTHON) -m venv .venv/newest
	.venv/newest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[all]' $(TEST_TOOLS)
	XLA_FLAGS="$(HARDLY)" .venv/newest/bin/python $(PYTEST) $(call tests,$(CORE))

# The wheel is tried in a folder that has the tests and no jbn.
build: .venv/.build  ## dist/: sdist and wheel, and the wheel tried with its dependencies alone, then with Flax
	rm -rf dist
	$(BIN)/python -m build
	export XLA_FLAGS="$(HARDLY)" && outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && \
	  cp -r pyproject.toml constraints.txt tests "$$outside" && wheel=$$(realpath dist/*.whl) && \
	  $(PYTHON) -m venv "$$outside/.venv" && cd "$$outside" && \
	  $(PIP) "$$wheel" && $(BIN)/python -W error -c '$(IMPORTS)' && \
	  $(PIP) $(TEST_TOOLS) && $(BIN)/python $(PYTEST) $(call tests,$(FUNCTIONS)) && \
	  $(PIP) "$$wheel[all]" && $(BIN)/python $(PYTEST) $(filter-out $(MESHES),$(call tests,$(CORE)))
# Of the core, what needs no Flax, and what needs benchmarks/, whose meshes it is tried on.
FUNCTIONS := batch_norm batch_norm_gradients batch_norm_masks moments running norms errors \
  errors_input errors_options errors_statistics
MESHES := tests/jbn/test_errors_devices.py
IMPORTS := import jbn, sys; from importlib.metadata import version; \
  assert jbn.__version__ == version("jbn"); assert "flax" not in sys.modules

lint: .venv/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peers: .venv/.peers  ## torch, Haiku, Equinox and Keras, to compare with: torch is large

browser: .venv/.browser  ## playwright, to drive the Chromium that is installed

bench: .venv/.peers  ## jbn against its peers on this machine
	$(BIN)/python -m benchmarks.op
	$(BIN)/python -m benchmarks.fig1
	$(BIN)/python -m benchmarks.modes
	$(BIN)/python -m benchmarks.collectives
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.eager
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.folded
	$(BIN)/python -m benchmarks.train_step

compiled: .venv/.experiments .venv/.tpu  ## what a TPU's compiler makes of jbn and Flax, minutes; no TPU needed
	PYTHONPATH=.venv/tpu $(BIN)/python -m benchmarks.compiled

clean:
	rm -rf .venv

.venv/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'jbn needs Python 3.11 or later; $(PYTHON) is older, or does not run: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.experiments .venv/.dev .venv/.peers .venv/.browser .venv/.docs: .venv/.%: .venv/.base pyproject.toml jbn/_version.py constraints.txt
	@echo "installing jbn[$*] from the pinned versions (once)"
	$(PIP) --editable '.[$*]'
	@touch $@

.venv/.build: .venv/.base constraints.txt
	$(PIP) build
	@touch $@

# Beside the environment, not in it: JAX looks for a TPU wherever it can import libtpu.
.venv/.tpu: .venv/.base constraints.txt
	$(PIP) --no-deps --target .venv/tpu libtpu
	@touch $@
