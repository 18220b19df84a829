"""Data, a network and calls shared by the tests of `jbn.nnx.BatchNorm`."""

import chex
import jax
import numpy as np
from flax import nnx

from jbn.nnx import BatchNorm

LAYERS = (nnx.BatchNorm, BatchNorm)


def sample(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    if dtype == "complex64":
        x = x + 1j * rng.normal(0, 1, shape)
    if dtype == "int32":
        x = 5 * x
    return jax.device_put(x.astype(dtype))


def arrays(layer):
    return nnx.to_pure_dict(nnx.state(layer))


@nnx.jit
def call(layer, x, **options):
    return layer(x, **options)


def close(got, want, tolerance=2e-5):
    chex.assert_trees_all_close(got, want, rtol=tolerance, atol=tolerance)


class Network(nnx.Module):
    """Two dense layers with a norm between them."""

    def __init__(self, norm, rngs, **options):
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = norm(3, rngs=rngs, **options)
        self.output = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.norm(self.dense(x))))
