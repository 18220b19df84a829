"""Set up eight virtual CPU devices and strict JAX before any array is created."""

import atexit
import contextlib
import gc
import os
import tempfile
from pathlib import Path

# `benchmarks/gpu.py` runs some of the tests on other platforms.
os.environ["JAX_PLATFORMS"] = os.environ.get("JBN_TEST_PLATFORM", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

# Processes that tests start, kill or resume compile the same programs, so they share a cache: each
# program is compiled once per run of the suite. The test process itself rarely compiles a program
# twice, and writing them all to disk would take longer than it saves.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jbn-compiled-", ignore_cleanup_errors=True)
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

# Collect garbage rarely: imports and traces create so many objects that it takes a tenth of the
# total time.
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling a new shape takes longer than hypothesis's deadline. The examples are the same every
# time, so that a failure can be reproduced.
hypothesis.settings.register_profile(
    "jbn",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("jbn")


# Test files whose names start with one of these run under strict promotion and with NaN as an
# error, unless a test is marked `lenient("nan")`, because its input contains NaN, or
# `lenient("promotion")`, because its peer is not strict. Not `linen_norms`: the schedules of renorm
# promote their count.
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
    """Exclude objects that exist after test collection from all garbage collections."""
    gc.freeze()


@pytest.fixture
def old_objects_left_alone():
    """Collect only this test's garbage: scanning all objects of a worker takes seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drop compiled programs before the process runs out of memory maps.

    Each program uses at least seven maps. Linux allows 65,530; beyond that, XLA's compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()
