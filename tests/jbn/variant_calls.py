"""Parameters and calls shared by the tests of ghost batches, renorm and example weighing."""

import functools

import jax
import numpy as np
from strategies import values

import jbn

# The same function compiled in two ways: summation order and fused multiply-adds differ.
REORDERED = 2e-6
SHAPE = (10, 2, 3)  # Groups of 4 leave a tail of 2.
LIMITS = {"r_max": 1.1, "d_max": 0.3}


def setting(features, dtype="float32", count=3):
    """Return params and a state that are neither ones nor zeros."""
    wide = "float64" if dtype == "float64" else "float32"
    params = jbn.BatchNormParams(
        values(0, features, dtype, mean=1.0, std=0.3), values(1, features, dtype)
    )
    var = jax.device_put(np.random.default_rng(2).uniform(0.5, 2, features).astype(wide))
    count = jax.device_put(np.int32(count))
    return params, jbn.BatchNormState(values(3, features, wide), var, count)


ghost = functools.partial(jbn.ghost_batch_norm, training=True)
renorm = functools.partial(jbn.batch_renorm, training=True)
train = functools.partial(jbn.batch_norm, training=True)
infer = jbn.normalize
