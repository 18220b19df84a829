"""A trained layer, and calls of a converted one, for the tests of `jbn.convert`."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn import convert

C = 3
# Two float32 implementations of the same formulas, with different summation orders.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def layer(use_scale=True, use_bias=True, count=7, features=C):
    """Make a layer as after training, with values that use all bits of float32."""
    rng = np.random.default_rng(5)
    scale, bias, mean, var = (
        jnp.asarray(rng.uniform(0.3, 3, features), jnp.float32) for _ in range(4)
    )
    params = jbn.BatchNormParams(scale if use_scale else None, bias if use_bias else None)
    return params, jbn.BatchNormState(mean, var, jnp.int32(count))


def evaluate(converted, x, **options):
    params, state, own = converted
    return jbn.batch_norm(x, params, state, training=False, epsilon=own.epsilon, **options)[0]


def train(converted, x, **options):
    """Return y and the layer with updated statistics, using the converted options."""
    params, state, own = converted
    y, state = jbn.batch_norm(x, params, state, training=True, **own._asdict(), **options)
    return y, convert.Converted(params, state, own)


def assert_same_bits(got, want):
    chex.assert_trees_all_equal_shapes_and_dtypes(tuple(got), tuple(want))
    chex.assert_trees_all_equal(tuple(got), tuple(want))


AFFINE = [(True, True), (True, False), (False, True), (False, False)]
affine = pytest.mark.parametrize(("use_scale", "use_bias"), AFFINE)
