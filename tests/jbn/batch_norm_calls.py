"""Parameters and states, jitted calls of `jbn.batch_norm`, and their float64 oracle."""

import functools

import jax
import numpy as np
import oracles
from oracles import (
    F32_STATISTICS,
    Problem,
    assert_close,
)
from strategies import values

import jbn

# The same function compiled in two ways: summation order and fused multiply-adds differ.
REORDERED = 2e-6


def train(x, params, state, **options):
    return call(x, params, state, training=True, **options)


def infer(x, params, state, **options):
    return call(x, params, state, training=False, **options)


def call(x, params, state, **options):
    """Call jitted, with momentum and epsilon as arguments, so that all values share a program."""
    options = {"momentum": 0.99, "epsilon": 1e-5} | options
    arrays = {k: v for k, v in options.items() if isinstance(v, jax.Array | np.ndarray | float)}
    static = tuple((k, v) for k, v in options.items() if k not in arrays)
    return jitted(static)(x, params, state, **arrays)


@functools.cache
def jitted(static):
    return jax.jit(functools.partial(jbn.batch_norm, **dict(static)))


def setting(features, seed=0, dtype="float32", statistics="float32", count=3):
    """Return params and a state that are neither ones nor zeros."""
    real = "float64" if statistics == "float64" else "float32"
    params = jbn.BatchNormParams(
        values(seed, features, dtype, mean=1.0, std=0.3), values(seed + 1, features, dtype)
    )
    rng = np.random.default_rng(seed + 2)
    state = jbn.BatchNormState(
        values(seed + 3, features, statistics),
        jax.device_put(rng.uniform(0.5, 2, features).astype(real)),
        jax.device_put(np.int32(count)),
    )
    return params, state


def oracle(x, params, state, **options):
    return Problem(
        x=oracles.exact(x),
        scale=None if params.scale is None else oracles.exact(params.scale),
        bias=None if params.bias is None else oracles.exact(params.bias),
        mean=oracles.exact(state.mean),
        var=oracles.exact(state.var),
        count=int(state.count),
        **options,
    )


def assert_state(got, want, tolerance=F32_STATISTICS):
    for name, a, b in zip(("mean", "var", "count"), got, want, strict=True):
        assert_close(a, b, tolerance, name)
