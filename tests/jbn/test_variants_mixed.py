"""Statistics mixed from example and running state, or frozen, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import F32_GRADIENT, F32_VALUE, assert_close
from strategies import values
from variant_calls import REORDERED, infer, setting

import jbn

weigh = jbn.normalize_with_example


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 1e4, 1e5])
def test_example_weighing_is_the_moments_of_the_mixture(weight, ratio):
    params, state = setting((3,))
    x = np.asarray(values(40, (4, 50, 3), mean=ratio))
    state = state._replace(mean=x.mean((0, 1)) + np.float32(0.3))
    y = weigh(x, *state[:2], params, weight=weight)
    v, mean, var = oracles.exact(x), oracles.exact(state.mean), oracles.exact(state.var)
    first = weight * v.mean(1) + (1 - weight) * mean
    # E[x^2] relative to the running mean, small enough to square in float64.
    second = weight * ((v - mean) ** 2).mean(1) + (1 - weight) * var
    spread = second - (first - mean) ** 2
    want = (v - first[:, None]) / np.sqrt(spread[:, None] + 1e-5)
    want = want * oracles.exact(params.scale) + oracles.exact(params.bias)
    assert_close(y, want, F32_VALUE)
    if weight == 0:
        assert_close(y, infer(x, *state[:2], params), REORDERED)
    if weight == 1:
        assert_close(y, jbn.instance_norm(x, params), REORDERED)


def test_example_weighing_is_a_merge_for_each_example():
    params, state = setting((3,))
    x = values(41, (4, 3, 50), mean=0.5)
    y = weigh(x, *state[:2], params, weight=0.3, axis=1)

    @jax.jit
    @jax.vmap
    def one(x):
        own = jbn.moments(x, axis=0)._replace(count=jnp.full(3, 0.3))
        both = jbn.merge_moments(own, jbn.Moments(*state[:2], jnp.full(3, 0.7)))
        return jbn.normalize(x, both.mean, both.var, params, axis=0)

    assert_close(y, one(x), F32_VALUE)


def test_example_weighing_does_not_mix_examples():
    params, state = setting((3,))
    x = np.array(values(42, (4, 50, 3)))
    want = np.asarray(weigh(x, *state[:2], params, weight=0.3))
    x[1:] = 7.0
    others = np.asarray(weigh(x, *state[:2], params, weight=0.3))
    assert_close(others[0], want[0], REORDERED)


def test_example_weighing_derivatives():
    """By all arguments, also by the weight at 0, where training would start if it is learned."""
    with jax.enable_x64(True):
        params, state = setting((2,), "float64")
        x = values(43, (2, 3, 2), "float64")

        def f(x, mean, var, params, weight):
            return jbn.normalize_with_example(x, mean, var, params, weight=weight)

        f = jax.jit(f)
        for weight in (0.4, 0.0):
            arguments = (x, *state[:2], params, jnp.asarray(weight))
            check_grads(f, arguments, order=1, rtol=1e-5, atol=1e-5)


def test_example_weighing_errors():
    params, state = jbn.init(3)
    x = np.asarray(values(44, (4, 5, 3)))
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="weight"):
            jbn.normalize_with_example(x, *state[:2], params, weight=weight)
    with pytest.raises(ValueError, match="first axis"):
        jbn.normalize_with_example(x.T, *state[:2], params, weight=0.1, axis=0)
    with pytest.raises(ValueError, match="shape"):
        jbn.normalize_with_example(x[..., :2], *state[:2], params, weight=0.1)
    with pytest.raises(TypeError, match="floating"):
        jbn.normalize_with_example(x.astype(int), *state[:2], params, weight=0.1)


def test_statistics_of_batch_and_running_pooled():
    """The recipe in the module: pool k values of the running distribution with the batch's."""
    params, state = setting((3,))
    x = values(45, (20, 3), mean=0.5)
    rest = np.random.default_rng(46).normal(size=(30, 3))
    rest = (rest - rest.mean(0)) / rest.std(0) * np.sqrt(state.var) + oracles.exact(state.mean)

    @jax.jit
    def pooled(x):
        running = jbn.Moments(*state[:2], jnp.full(3, 30.0))
        both = jbn.merge_moments(jbn.moments(x), running)
        return jbn.normalize(x, both.mean, both.var, params)

    mean, var, _ = oracles.moments(np.concatenate([oracles.exact(x), rest]))
    assert_close(pooled(x), oracles.normalize(x, mean, var, *params), F32_VALUE)


def test_frozen_statistics_pass_the_gradient_of_an_affine_map():
    params, state = setting((3,))
    x, dy = values(47, (5, 3)), values(48, (5, 3))

    def loss(x, mean, var):
        return jnp.sum(jbn.normalize(x, mean, var, params) * dy)

    dx, dmean, dvar = jax.jit(jax.grad(loss, (0, 1, 2)))(x, *state[:2])
    a = oracles.exact(params.scale) / np.sqrt(oracles.exact(state.var) + 1e-5)
    g = oracles.exact(dy) * a
    assert_close(dx, g, F32_GRADIENT)
    assert_close(dmean, -g.sum(0), F32_GRADIENT)
    centered = oracles.exact(x) - oracles.exact(state.mean)
    want = -0.5 * (g * centered).sum(0) / (oracles.exact(state.var) + 1e-5)
    assert_close(dvar, want, F32_GRADIENT)


def test_an_example_of_nothing_needs_no_batch():
    x, mean, var = (np.float32(make) for make in (np.zeros((0, 3, 4)), np.zeros(4), np.ones(4)))
    y = jbn.normalize_with_example(x, mean, var, weight=0.5)
    assert y.shape == x.shape
