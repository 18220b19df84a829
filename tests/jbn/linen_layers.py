"""Data and calls shared by the tests of `jbn.linen.BatchNorm`."""

import functools

import jax
import numpy as np

import jbn
from jbn.linen import BatchNorm


def sample(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    if dtype == "complex64":
        x = x + 1j * rng.normal(0, 1, shape)
    if dtype == "int32":
        x = 5 * x
    return jax.device_put(x.astype(dtype))


def counting(momentum=jbn.cumulative, steps=3):
    """Return a layer with a schedule, its variables after a few steps, and the next batch."""
    layer, batches = BatchNorm(momentum=momentum), np.asarray(sample((steps + 1, 8, 3)))
    variables = layer.init(jax.random.key(0), batches[0], use_running_average=False)
    for x in batches[:-1]:
        variables = trained(layer, variables, x)
    return layer, variables, batches[-1]


def trained(layer, variables, x):
    moved = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[1]
    return {**variables, **moved}


def with_stats(variables, **stats):
    return {**variables, "batch_stats": {**variables["batch_stats"], **stats}}


@functools.partial(jax.jit, static_argnums=0)
def with_each_mask(kind, x, masks):
    layer = kind(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    return [layer.apply(variables, x, mask=mask, mutable=["batch_stats"]) for mask in masks]
