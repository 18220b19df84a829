"""Eight virtual CPU devices and strict JAX, set before anything makes an array."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import hypothesis
import jax

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
