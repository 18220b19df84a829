# On a fresh machine with Python 3.11 or later, `make demo` and `make test` each work by themselves.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The suite spends most of its time in XLA's compiler. Tests of float32 accuracy compile as users do;
# all others use little optimization. Programs are not split for parallel compilation, since two
# workers already use both cores. The longest tests come first, so that no worker is idle at the end.
PYTEST := -m pytest -n 2 --dist worksteal -q
UNSPLIT := --xla_cpu_parallel_codegen_split_count=1
HARDLY := --xla_backend_optimization_level=0 $(UNSPLIT)
COMPILE_FAST = $(HARDLY) $(shell $(TRY) 2>/dev/null && echo $(OLD_EMITTERS))
# XLA aborts on unknown flags, and since jax 0.11 this one is unknown.
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

demo: .venv/.experiments  ## train Fig. 1 of the paper on MNIST, 10,000 steps and three seeds, about a minute
	$(BIN)/python -m experiments mnist_mlp --preset quick

demo-devices: .venv/.experiments  ## show that eight virtual devices give the numbers of one
	$(BIN)/python -m experiments mnist_mlp --preset smoke
	$(BIN)/python -m experiments mnist_mlp --preset smoke --devices 8

ledger: .venv/.experiments  ## measure every claim: 122 minutes on two cores shared with other work; resumes if stopped
	$(BIN)/python -m experiments all --preset quick --resume
	$(BIN)/python -m experiments report

report: .venv/.experiments  ## build the ledger's pages, from your runs where there are any
	$(BIN)/python -m experiments report

notebooks: .venv/.dev  ## execute each script in notebooks/ as a notebook
	PYTHONPATH=. $(BIN)/python notebooks/build.py

# Warnings and public names without a page are errors. Nothing is downloaded.
SPHINX := JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet

docs: .venv/.docs  ## build the site: docs/_build/html/index.html
	$(SPHINX) -b html docs docs/_build/html

linkcheck: .venv/.docs  ## check the site's external links over the network
	$(SPHINX) -b linkcheck docs docs/_build/linkcheck

# Two workers already use both cores; threads of NumPy and torch would only compete with them.
test test-fast test-newest build: export OPENBLAS_NUM_THREADS := 1
test test-fast test-newest build: export OMP_NUM_THREADS := 1

test: .venv/.dev  ## run the whole suite; tests against peers that are not installed are skipped
	XLA_FLAGS="$(UNSPLIT)" $(BIN)/python $(PYTEST) $(NUMBERS)
	XLA_FLAGS="$(COMPILE_FAST)" $(BIN)/python $(PYTEST) $(LONG) $(OTHERS) jbn

test-fast: .venv/.dev  ## test the core alone, with little compiler optimization
	XLA_FLAGS="$(COMPILE_FAST)" $(BIN)/python $(PYTEST) $(call tests,$(CORE))

# In a separate environment that contains nothing else.
TEST_TOOLS := chex hypothesis pytest pytest-xdist

test-newest: .venv/.base  ## test the core with the newest dependencies, without constraints.txt
	rm -rf .venv/newest
	$(PYTHON) -m venv .venv/newest
	.venv/newest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[all]' $(TEST_TOOLS)
	XLA_FLAGS="$(HARDLY)" .venv/newest/bin/python $(PYTEST) $(call tests,$(CORE))

# The wheel is tested in a folder that contains the tests, but not the jbn package.
build: .venv/.build  ## build dist/: sdist and wheel; test the wheel with core dependencies alone, then with Flax
	rm -rf dist
	$(BIN)/python -m build
	export XLA_FLAGS="$(HARDLY)" && outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && \
	  cp -r pyproject.toml constraints.txt tests "$$outside" && wheel=$$(realpath dist/*.whl) && \
	  $(PYTHON) -m venv "$$outside/.venv" && cd "$$outside" && \
	  $(PIP) "$$wheel" && $(BIN)/python -W error -c '$(IMPORTS)' && \
	  $(PIP) $(TEST_TOOLS) && $(BIN)/python $(PYTEST) $(call tests,$(FUNCTIONS)) && \
	  $(PIP) "$$wheel[all]" && $(BIN)/python $(PYTEST) $(filter-out $(MESHES),$(call tests,$(CORE)))
# The core tests that need no Flax, and those that need benchmarks/ for its meshes.
FUNCTIONS := batch_norm batch_norm_gradients batch_norm_masks moments running norms errors \
  errors_input errors_options errors_statistics
MESHES := tests/jbn/test_errors_devices.py
IMPORTS := import jbn, sys; from importlib.metadata import version; \
  assert jbn.__version__ == version("jbn"); assert "flax" not in sys.modules

lint: .venv/.dev  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peers: .venv/.peers  ## install torch, Haiku, Equinox and Keras to compare with; torch is large

browser: .venv/.browser  ## install playwright, to drive an installed Chromium

bench: .venv/.peers  ## benchmark jbn against its peers on this machine
	$(BIN)/python -m benchmarks.op
	$(BIN)/python -m benchmarks.fig1
	$(BIN)/python -m benchmarks.modes
	$(BIN)/python -m benchmarks.collectives
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.eager
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.folded
	$(BIN)/python -m benchmarks.train_step

compiled: .venv/.experiments .venv/.tpu  ## compare what the TPU compiler makes of jbn and Flax; takes minutes, needs no TPU
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

# Outside the environment: wherever JAX can import libtpu, it looks for a TPU.
.venv/.tpu: .venv/.base constraints.txt
	$(PIP) --no-deps --target .venv/tpu libtpu
	@touch $@
