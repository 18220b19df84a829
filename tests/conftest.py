"""Eight virtual CPU devices and strict JAX, set before anything makes an array."""

import atexit
import contextlib
import gc
import os
import tempfile
from pathlib import Path

# `benchmarks/gpu.py` runs some of the tests elsewhere.
os.environ["JAX_PLATFORMS"] = os.environ.get("JBN_TEST_PLATFORM", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

# Processes that a test starts, and kills or resumes, compile the same programs: each once a run. In
# this one few are asked for twice, and to write all of them down takes longer than it saves.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jbn-compiled-", ignore_cleanup_errors=True)
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

# Collect garbage seldom: imports and traces are so many objects that it takes a tenth of all time.
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling a new shape takes longer than hypothesis' deadline; the same examples every time, so
# that a red run is red again.
hypothesis.settings.register_profile(
    "jbn",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("jbn")


# All that these test, and files of which these are the first words, runs under strict promotion and
# with NaN as an error, unless a test says `lenient("nan")`, since it brings NaN, or
# `lenient("promotion")`, since its peer is not strict. Schedules of renorm promote their count.
CORE = ("batch_norm", "moments", "running", "norms", "linen", "nnx", "errors")
NOT_CORE = ("linen_norms",)


def pytest_configure(config):
    config.addinivalue_line("markers", "lenient(what): without strict promotion, or with NaN")


@pytest.fixture(autouse=True)
def strict(request):
    lenient = [what for mark in request.node.iter_markers("lenient") for what in mark.args]
    with contextlib.ExitStack() as stack:
        name = request.node.path.stem.removeprefix("test_")
        if name.startswith(CORE) and name not in NOT_CORE:
            if "promotion" not in lenient:
                stack.enter_context(jax.numpy_dtype_promotion("strict"))
            if "nan" not in lenient:
                stack.enter_context(jax.debug_nans(True))
        yield


def pytest_collection_finish():
    """What is there by now stays: leave it out of every collection of garbage."""
    gc.freeze()


@pytest.fixture
def old_objects_left_alone():
    """Collect the garbage of one test alone: of all that a worker holds it takes seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Let compiled programs go before the process has no memory map left for one more.

    Each takes seven maps or more, Linux grants 65,530, and then XLA's compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()
