"""Pooling of the models, compared with Flax's."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbn.models.pooling import avg_pool, max_pool

CASES = [
    ((2, 7, 6, 3), (3, 3), (1, 1), "SAME"),
    ((2, 7, 6, 3), (3, 3), (2, 2), "SAME"),
    ((2, 8, 8, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 5, 7, 3), (2, 2), (2, 2), "SAME"),
    ((2, 5, 7, 3), (2, 3), (2, 1), "VALID"),
    ((1, 1, 1, 1), (3, 3), (2, 2), "SAME"),
    ((0, 4, 4, 2), (3, 3), (1, 1), "SAME"),
]
PAIRS = [(max_pool, nn.max_pool), (avg_pool, nn.avg_pool)]


def of(pool, window, strides, padding):
    return functools.partial(pool, window_shape=window, strides=strides, padding=padding)


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
@pytest.mark.parametrize(("ours", "flax"), PAIRS)
def test_values_and_gradients_are_flaxs(ours, flax, shape, window, strides, padding):
    """With few distinct values, many are equal: the first of them gets the gradient, as in Flax."""
    rng = np.random.default_rng(0)
    x = rng.integers(4, size=shape).astype(np.float32)
    y, pull = jax.vjp(lambda x: ours(x, window, strides, padding), x)
    want, want_pull = jax.vjp(of(flax, window, strides, padding), x)
    np.testing.assert_allclose(y, want, rtol=1e-6)
    ct = rng.integers(-8, 8, size=y.shape).astype(np.float32)
    np.testing.assert_allclose(pull(ct)[0], want_pull(ct)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_flaxs(value):
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 2, 2] = value
    for ours, flax in PAIRS:
        want = flax(x, (3, 3), (1, 1), "SAME")
        np.testing.assert_array_equal(ours(x, (3, 3), (1, 1), "SAME"), want)


@pytest.mark.parametrize("value", [6e4, 1.0])
def test_averages_are_of_float32(value):
    """A float16 sum of nine would overflow."""
    x = jnp.full((1, 3, 3, 1), value, jnp.float16)
    y = avg_pool(x, (3, 3), (1, 1), "VALID")
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, np.full((1, 1, 1, 1), value, np.float16))


def test_averages_are_rounded_once():
    """A bfloat16 sum of nine would be rounded eight times."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (64, 3, 3, 8)), jnp.bfloat16)
    y = avg_pool(x, (3, 3), (1, 1), "VALID")
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).mean((1, 2), keepdims=True)
    half_an_ulp = 2.0**-9 * 2 ** np.ceil(np.log2(np.abs(exact)))
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - exact), 1.001 * half_an_ulp)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_a_cpu_neither_loops_over_windows_nor_scatters(pool):
    def loss(x):
        return jnp.sum(pool(x, (3, 3), (2, 2), "SAME") ** 2)

    x = jnp.ones((2, 8, 8, 3))
    text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    assert re.findall(r"(?:reduce-window|scatter)\(", text) == []


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_each_platform_of_an_export_has_its_own(pool):
    def call(x):
        return pool(x, (3, 3), (2, 2), "SAME")

    x = jnp.arange(128.0).reshape(2, 8, 8, 1)
    texts = {
        platform: jax.export.export(jax.jit(call), platforms=[platform])(x).mlir_module()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert [name for name, text in texts.items() if "reduce_window" in text] == ["tpu", "cuda"]
    every = jax.export.export(jax.jit(call), platforms=["cpu", "tpu", "cuda"])(x)
    np.testing.assert_array_equal(every.call(x), call(x))


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_pools_go_through_vmap(pool):
    x = jnp.arange(256.0).reshape(2, 2, 8, 8, 1)
    y = jax.vmap(lambda x: pool(x, (3, 3), (2, 2), "SAME"))(x)
    np.testing.assert_array_equal(y[1], pool(x[1], (3, 3), (2, 2), "SAME"))
