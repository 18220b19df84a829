"""Eight virtual CPU devices and strict JAX, set before anything makes an array."""

import gc
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import hypothesis
import jax
import pytest

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


def pytest_collection_finish():
    """Leave what was imported alone: a test that collects garbage waits a second for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Let compiled programs go before the process has no memory map left for one more.

    Each takes seven maps or more, Linux grants 65,530, and then XLA's compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
